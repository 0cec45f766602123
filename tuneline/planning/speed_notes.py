"""What a plan says of its speed beside the estimate: what is chosen by backend, and what slows it, with a figure."""

from collections.abc import Iterator

from tuneline.contracts.artifacts import DerivedValue, PreparedData
from tuneline.contracts.objectives import objective_of
from tuneline.contracts.spec import RunSpec
from tuneline.planning.batching import (
    QLORA_MICRO_BATCH_TOKENS,
    AverageMicroBatch,
    Batching,
    average_micro_batch,
    largest_micro_batch,
    recipe_of,
)
from tuneline.planning.hardware import Device, Machine, as_gib
from tuneline.planning.memory import training_memory
from tuneline.planning.model_shape import ModelShape
from tuneline.planning.throughput import COMPILATION, dequantise_share

NOTED_PADDING_SHARE = 0.02


def speed_notes(
    spec: RunSpec,
    shape: ModelShape,
    data: PreparedData,
    device: Device,
    machine: Machine,
    limit_bytes: int,
    batching: Batching,
    tokens_per_second: float,
) -> Iterator[DerivedValue]:
    """List what was chosen for speed, and what costs some.

    Args:
        spec: the config.
        shape: the model.
        data: what is trained on.
        device: what it is trained on.
        machine: facts of the CPU.
        limit_bytes: memory of the device.
        batching: as it was chosen.
        tokens_per_second: as expected, over all devices.
    """
    average = average_micro_batch(spec, data, batching)
    if objective_of(spec.training.objective, data.kind) == "sft":
        yield _token_budget(data, batching, average)
    if device.kind == "cpu":
        reason = "cores that this process may use; those that are free when the training starts, or OMP_NUM_THREADS"
        yield DerivedValue(key="threads", value=f"at most {machine.cores}", reason=reason)
    if (padding := 1 - average.useful_share) >= NOTED_PADDING_SHARE:
        reason = "of the computed tokens, about: rows are padded to the longest of their micro-batch"
        yield DerivedValue(key="padding", value=f"{padding:.0%}", reason=reason)
    yield from _slow_formats(spec, shape, device, machine, batching, average, data)
    if spec.training.activation_checkpointing == "on":
        yield from _needless_checkpointing(_without_checkpointing(spec, shape, data, device), limit_bytes)
    if spec.training.compile:
        step_seconds = spec.training.effective_batch_rows * data.mean_row_tokens / tokens_per_second
        yield _break_even(device, step_seconds)


def _token_budget(data: PreparedData, batching: Batching, average: AverageMicroBatch) -> DerivedValue:
    budget = batching.micro_batch_rows * data.longest_tokens
    rows = average.tokens * average.useful_share / data.mean_row_tokens
    reason = f"micro_batch_rows x the longest row: micro-batches are cut by tokens, on average {rows:.0f} rows"
    return DerivedValue(key="micro_batch_tokens", value=f"{budget:,}", reason=reason)


def _slow_formats(
    spec: RunSpec,
    shape: ModelShape,
    device: Device,
    machine: Machine,
    batching: Batching,
    average: AverageMicroBatch,
    data: PreparedData,
) -> Iterator[DerivedValue]:
    recipe = batching.recipe
    if recipe.method != "full" and not recipe.autocast:
        why = (
            "model.dtype is float32" if spec.model.dtype == "float32" else f"this device is slow at {spec.model.dtype}"
        )
        reason = f"{why}: the frozen base takes twice the memory, and products take their time in float32"
        yield DerivedValue(key="base_format", value="float32", reason=reason)
    if recipe.method == "qlora" and average.tokens < QLORA_MICRO_BATCH_TOKENS:
        share = dequantise_share(
            shape,
            recipe,
            device,
            cores=machine.cores,
            packing=batching.packing,
            micro_batch_tokens=average.tokens,
            row_tokens=data.mean_row_tokens / data.sequences_per_row,
        )
        reason = (
            f"of the time: QLoRA expands its weights once per micro-batch, whose {average.tokens:,.0f} tokens do not "
            f"hide it ({QLORA_MICRO_BATCH_TOKENS:,} would)"
        )
        yield DerivedValue(key="expanding_nf4", value=f"{share:.0%}", reason=reason)


def _without_checkpointing(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device) -> float:
    """Bytes that one row at a time takes at most."""
    recipe = recipe_of(spec, shape, data, device, checkpointing=False)
    rows = spec.training.micro_batch_rows or 1
    return training_memory(shape, recipe, largest_micro_batch(data, rows)).total.high


def _needless_checkpointing(needed_bytes: float, limit_bytes: int) -> Iterator[DerivedValue]:
    if needed_bytes <= limit_bytes:
        reason = f"of the time, about, goes into a second forward pass: without it, {as_gib(needed_bytes)} at most of "
        yield DerivedValue(
            key="needless_checkpointing", value="30 %", reason=f"{reason}{as_gib(limit_bytes)} would be taken"
        )


def _break_even(device: Device, step_seconds: float) -> DerivedValue:
    compilation = COMPILATION[device.kind]
    steps = compilation.seconds / (compilation.saved_share * step_seconds)
    reason = f"steps: compiling takes about {compilation.seconds:.0f} s and saves {compilation.saved_share:.0%} of each"
    return DerivedValue(key="compile_pays_after", value=f"{steps:,.0f}", reason=reason)
