"""How the rows of an optimizer step are cut into micro-batches that fit one device.

Training cuts by tokens: a micro-batch holds what `micro_batch_rows` of the longest rows would take, and of shorter rows
more. Preferences alone are cut by rows.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.objectives import WITH_REFERENCE, objective_of
from tuneline.contracts.spec import RunSpec
from tuneline.planning.hardware import Device
from tuneline.planning.memory import Memory, MicroBatch, Recipe, training_memory
from tuneline.planning.model_shape import ModelShape
from tuneline.planning.objectives import EXTRA_FORWARD_PASSES
from tuneline.planning.request import adapted_modules, adapted_weights

MICRO_BATCH_TOKENS = {"gpu": 16_384, "cpu": 8_192}
"""Tokens beyond which a larger micro-batch gains nothing: the matrix products are efficient, and padding grows."""
QLORA_MICRO_BATCH_TOKENS = 8_192
"""Below this, expanding NF4 weights costs more than 2 to 9 % of the time (A100)."""
POOL_BATCHES = 50
"""Batches whose rows training sorts by length together."""
LEARNED_SHARE_MARGIN = 1.3
"""The learned share of the largest micro-batch may exceed the data's average."""


@dataclass(frozen=True)
class Batching:
    """A way to cut a step, with what it takes; `fits` when even the upper end of the estimate does."""

    micro_batch_rows: int
    accumulation_steps: int
    packing: bool
    recipe: Recipe
    memory: Memory
    fits: bool

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        return self.recipe.checkpointing


@dataclass(frozen=True)
class AverageMicroBatch:
    """What a device computes at a time."""

    tokens: float
    """Padding included."""
    useful_share: float
    """Of the tokens: what is not padding."""


def choose_batching(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int) -> Batching:
    """Choose the first way that fits, fastest first: without checkpointing before with it, large before small.

    Returns:
        When no way fits, the one that takes least, with `fits` false.
    """
    ways = []
    for way in _ways(spec, shape, data, device, limit_bytes):
        if way.fits:
            return way
        ways.append(way)
    return min(ways, key=lambda way: way.memory.total.expected)


def recipe_of(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, *, checkpointing: bool) -> Recipe:
    """Gather what memory and speed depend on from a config."""
    dtype = spec.model.dtype
    objective = objective_of(spec.training.objective, data.kind)
    return Recipe(
        method=spec.adapter.method,
        rank=spec.adapter.rank,
        dropout=spec.adapter.dropout,
        adapted=adapted_modules(spec.adapter, shape),
        autocast=device.has_bfloat16 if dtype == "bfloat16" else dtype == "float16" and device.kind == "gpu",
        eager_attention=spec.model.attention == "eager",
        checkpointing=checkpointing,
        device=device.kind,
        devices=spec.budget.gpus,
        sharded=spec.training.fsdp,
        extra_forward_passes=EXTRA_FORWARD_PASSES[objective],
        reference_copy=objective in WITH_REFERENCE and spec.adapter.method == "full",
        dora=spec.adapter.dora,
        pissa=spec.adapter.initialisation == "pissa",
        fused=adapted_weights(spec.adapter, shape),
    )


def is_packed(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device) -> bool:
    """Whether the rows of a micro-batch are joined into one.

    `auto` says so where attention takes them one by one: FlashAttention on a GPU, torch's kernel as we use it on a CPU.
    """
    if objective_of(spec.training.objective, data.kind) != "sft":
        return False
    if spec.training.packing == "auto":
        return shape.only_attends and spec.model.attention == {"gpu": "flash_attention_2", "cpu": "sdpa"}[device.kind]
    return spec.training.packing == "on"


def largest_micro_batch(data: PreparedData, rows: int) -> MicroBatch:
    """Return the micro-batch that decides whether a training fits: rows as long as the longest, packed or not.

    Rows of like length are put into one batch, so the longest ones do meet.
    """
    tokens = rows * data.sequences_per_row * data.longest_tokens
    learned_share = min(1.0, LEARNED_SHARE_MARGIN * data.learned_tokens / data.train_tokens)
    return MicroBatch(tokens, math.ceil(tokens * learned_share), data.longest_tokens)


def average_micro_batch(spec: RunSpec, data: PreparedData, batching: Batching) -> AverageMicroBatch:
    """Describe an average micro-batch.

    Rows are sorted by length in pools of 50 batches and cut into k micro-batches, each padded to its longest row: on
    average over the k steps of a staircase from 0 to the longest row, half a step is padding. Labelled answers are
    sorted within a batch only.
    """
    rows, gpus = spec.training.effective_batch_rows // spec.budget.gpus, spec.budget.gpus
    mean, longest = data.mean_row_tokens, data.sequences_per_row * data.longest_tokens
    by_tokens = objective_of(spec.training.objective, data.kind) == "sft"
    budget = batching.micro_batch_rows * longest
    fewest = math.ceil(rows * mean / budget) if by_tokens else batching.accumulation_steps
    if batching.packing:
        return AverageMicroBatch(rows * mean / fewest, 1.0)
    pool = 1 if data.kind == "unpaired_preference" else POOL_BATCHES
    batches = min(pool, max(1, data.train_rows // spec.training.effective_batch_rows))
    # Of preferences, each rank takes the next stretch of the sorted rows; otherwise all get the same lengths.
    neighbours = batches * (1 if by_tokens else gpus)

    def padded(count: int) -> float:
        return mean + min(longest - mean, longest / (2 * neighbours * count))

    count = next(more for more in itertools.count(fewest) if not by_tokens or rows * padded(more) <= more * budget)
    return AverageMicroBatch(rows * padded(count) / count, mean / padded(count))


def _ways(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int) -> Iterator[Batching]:
    rows_per_device = max(1, spec.training.effective_batch_rows // spec.budget.gpus)
    packing = is_packed(spec, shape, data, device)
    for checkpointing in {"auto": (False, True), "on": (True,), "off": (False,)}[
        spec.training.activation_checkpointing
    ]:
        recipe = recipe_of(spec, shape, data, device, checkpointing=checkpointing)
        for rows in _micro_batches(spec, rows_per_device, device):
            micro_batch = largest_micro_batch(data, rows)
            too_large = rows > 1 and micro_batch.tokens > MICRO_BATCH_TOKENS[device.kind]
            if too_large and spec.training.micro_batch_rows is None:
                continue
            memory = training_memory(shape, recipe, micro_batch)
            accumulation = rows_per_device // rows
            yield Batching(rows, accumulation, packing, recipe, memory, memory.total.high <= limit_bytes)


def _micro_batches(spec: RunSpec, rows_per_device: int, device: Device) -> list[int]:
    """Divisors of the rows that a device takes per step, largest first; on a GPU powers of two."""
    given = spec.training.micro_batch_rows
    if given is not None:
        return [given]
    divisors = [rows for rows in range(rows_per_device, 0, -1) if rows_per_device % rows == 0]
    return [rows for rows in divisors if device.kind == "cpu" or rows & (rows - 1) == 0]
