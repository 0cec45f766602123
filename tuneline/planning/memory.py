"""Peak memory of a training on one device, in bytes, part by part.

The peak is the larger of two moments: a layer's backward pass, and the loss head. What a layer keeps for its backward
pass was measured (`layer_bytes`); everything else is arithmetic on the model's shape.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from tuneline.contracts.artifacts import Estimate
from tuneline.planning.hardware import GIB
from tuneline.planning.layer_bytes import LAYER_BYTES
from tuneline.planning.model_shape import ModelShape
from tuneline.planning.modules import FusedWeight, LinearModule

NF4_BITS = 4.127
"""Bits per weight: 4, an 8-bit scale per 64 weights, and a 32-bit scale per 256 of those (double quantisation)."""
FP32_BYTES, BF16_BYTES = 4, 2
ADAM_BYTES = 8
"""Two fp32 moments per trained parameter."""
HEAD_TILE_TOKENS, HEAD_TILE_VOCABULARY = 4096, 32768
"""On a GPU, TRL 1.16 projects the loss head in tiles of this size and never holds all logits."""
CPU_LOGIT_BYTES = 14
"""On a CPU all logits are held: in 16 bit, in fp32, as log-probabilities and as gradient (14 to 18 published)."""
CONTEXT_GIB: Mapping[str, Estimate] = MappingProxyType(
    {
        "gpu": Estimate(low=0.15, expected=0.5, high=0.9),  # CUDA context and cuBLAS workspaces: 0.14 to 0.6 published
        # 0.7 for torch, transformers and trl at work, and up to 0.75 more that gathers over batches of many lengths:
        # measured on a 3 M parameter Llama, nearly level after 100 steps, almost the same for 8 rows as for 32.
        "cpu": Estimate(low=0.5, expected=1.4, high=2.0),
    }
)
DYNAMIC_FACTOR: Mapping[str, Estimate] = MappingProxyType(
    {
        "gpu": Estimate(low=0.9, expected=1.03, high=1.25),  # 2 to 8 % fragmentation; published runs reach 25 %
        "cpu": Estimate(low=1.0, expected=1.4, high=1.8),  # 1.4 to 1.5 measured with 32 and 64 rows
    }
)
"""What comes and goes within a step really takes this many times its size."""
MLP_MODULES = frozenset({"gate_proj", "up_proj", "down_proj", "fc1", "fc2", "gate_up_proj"})
PISSA_COPIES = 4
"""The weight in fp32, the product of its largest components, the rest, and the randomised decomposition's own."""


@dataclass(frozen=True)
class Recipe:
    """What memory and speed depend on besides the model's shape and the tokens."""

    method: Literal["lora", "qlora", "full"]
    rank: int
    dropout: float
    adapted: tuple[LinearModule, ...]
    autocast: bool
    """Matrix products in 16 bit; the frozen base is held in that format then, and in fp32 otherwise."""
    eager_attention: bool
    checkpointing: bool
    device: Literal["gpu", "cpu"]
    devices: int
    sharded: bool
    """FSDP: weights, gradients and optimizer are split over the devices; otherwise each has them whole."""
    extra_forward_passes: int = 0
    """Passes without gradients beside each training pass: those of a preference objective's reference."""
    reference_copy: bool = False
    """A full training that is held to its base keeps it in memory, in fp32 like the weights in training."""
    dora: bool = False
    """Each adapted module has a magnitude for every output."""
    pissa: bool = False
    """The factors start at the principal components of the weights, which are computed before the first step."""
    fused: tuple[FusedWeight, ...] = ()
    """Experts that are adapted, in one weight a layer."""

    @property
    def base_bytes(self) -> int:
        """Bytes per weight where it is not NF4; a full fine-tune keeps fp32 master weights."""
        return BF16_BYTES if self.autocast and self.method != "full" else FP32_BYTES

    @property
    def shards(self) -> int:
        """Pieces that weights, gradients and optimizer are cut into."""
        return self.devices if self.sharded else 1

    def trainable_parameters(self, shape: ModelShape) -> int:
        """Parameters that are trained: rank times (in + out) of each adapted module and expert, magnitudes, or all."""
        if self.method == "full":
            return shape.parameters
        magnitudes = sum(module.out_features * module.count for module in self.adapted) if self.dora else 0
        in_modules = sum(
            self.rank * (module.in_features + module.out_features) * module.count for module in self.adapted
        )
        in_experts = sum(self.rank * (one.in_features + one.out_features) * one.experts for one in self.fused)
        return in_modules + in_experts + magnitudes


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a training, padding included."""

    tokens: int
    learned_tokens: int
    """Positions at which the loss head is evaluated."""
    longest_row_tokens: int


@dataclass(frozen=True)
class Memory:
    """Peak of one device: parts that add up to `total.expected`, and the interval."""

    parts: Mapping[str, int]
    total: Estimate


def training_memory(shape: ModelShape, recipe: Recipe, micro_batch: MicroBatch) -> Memory:
    """Estimate the peak of a training step on one device."""
    static = _static_bytes(shape, recipe)
    dynamic = _dynamic_bytes(shape, recipe, micro_batch)
    context, factor = CONTEXT_GIB[recipe.device], DYNAMIC_FACTOR[recipe.device]
    moving, fixed = sum(dynamic.values()), sum(static.values())
    parts = {name: round(size) for name, size in (static | dynamic).items() if size > 0}
    parts["fragmentation"] = round(moving * (factor.expected - 1))
    parts["context"] = round(context.expected * GIB)
    total = Estimate(
        low=float(round(fixed + moving * factor.low + context.low * GIB)),
        expected=float(sum(parts.values())),
        high=float(round(fixed + moving * factor.high + context.high * GIB)),
    )
    return Memory(MappingProxyType(parts), total)


def kept_activation_bytes(shape: ModelShape, recipe: Recipe, micro_batch: MicroBatch) -> float:
    """Bytes that all layers keep between the forward and the backward pass: each layer's input when checkpointing."""
    if recipe.checkpointing:
        return float(shape.layers * micro_batch.tokens * recipe.base_bytes * shape.hidden_size)
    return shape.layers * _layer_bytes(shape, recipe, micro_batch)


def _static_bytes(shape: ModelShape, recipe: Recipe) -> dict[str, float]:
    """Bytes held from the first step to the last."""
    trainable = recipe.trainable_parameters(shape)
    adapters = 0 if recipe.method == "full" else FP32_BYTES * trainable
    return {
        "weights": _weight_bytes(shape, recipe) / recipe.shards,
        "adapters": adapters / recipe.shards,
        "reference": FP32_BYTES * shape.parameters / recipe.shards if recipe.reference_copy else 0,
        "gradients": FP32_BYTES * trainable / recipe.shards,
        # Without FSDP, DistributedDataParallel holds the gradients a second time, in the buckets that it sends.
        "gradient_buckets": FP32_BYTES * trainable if recipe.devices > 1 and not recipe.sharded else 0,
        "optimizer": ADAM_BYTES * trainable / recipe.shards,
    }


def _weight_bytes(shape: ModelShape, recipe: Recipe) -> float:
    if recipe.method != "qlora":
        return recipe.base_bytes * shape.parameters
    return shape.linear_parameters * NF4_BITS / 8 + recipe.base_bytes * (shape.parameters - shape.linear_parameters)


def _dynamic_bytes(shape: ModelShape, recipe: Recipe, micro_batch: MicroBatch) -> dict[str, float]:
    """Bytes that come and go within a step, at the larger of its two moments."""
    kept = kept_activation_bytes(shape, recipe, micro_batch)
    recomputed = _layer_bytes(shape, recipe, micro_batch) if recipe.checkpointing else 0.0
    head = _head_bytes(shape, recipe, micro_batch)
    at_head = head >= recomputed
    parts = {
        "activations": kept if at_head else kept + recomputed,
        "loss_head": head if at_head else 0.0,
        "cast_copies": _cast_copy_bytes(shape, recipe),
        "dequantised": _largest(shape.linears) * BF16_BYTES if recipe.method == "qlora" else 0.0,
        "adapted_experts": _adapted_experts_bytes(shape, recipe),
        "directions": _direction_bytes(recipe),
        "gathered": _gathered_bytes(shape, recipe),
    }
    # Before the first step nothing of the above is there.
    decomposition = PISSA_COPIES * FP32_BYTES * _largest(recipe.adapted) if recipe.pissa else 0.0
    return parts | {"decomposition": max(0.0, decomposition - sum(parts.values()))}


def _layer_bytes(shape: ModelShape, recipe: Recipe, micro_batch: MicroBatch) -> float:
    linear = micro_batch.tokens * LAYER_BYTES[_layer_key(recipe)].of(shape)
    # Eager attention keeps the fp32 softmax and its 16-bit copy for every pair of tokens of a row.
    pairs = micro_batch.tokens * micro_batch.longest_row_tokens if recipe.eager_attention else 0
    return linear + pairs * shape.heads * (FP32_BYTES + BF16_BYTES)


def _layer_key(recipe: Recipe) -> str:
    if recipe.method == "full":
        return "full autocast" if recipe.autocast else "full"
    words = ["dora" if recipe.dora else "lora"]
    if recipe.autocast:
        words.append("autocast")
        if not any(module.name in MLP_MODULES for module in recipe.adapted):
            words.append("attention")
    return " ".join([*words, "dropout"] if recipe.dropout > 0 else words)


def _cast_copy_bytes(shape: ModelShape, recipe: Recipe) -> float:
    """16-bit copies of fp32 weights, which autocast keeps for the backward pass (measured: 2.0 bytes a weight)."""
    if not recipe.autocast:
        return 0.0
    everything = shape.linear_parameters + shape.fused_parameters
    copied = everything if recipe.method == "full" else recipe.trainable_parameters(shape)
    if recipe.dora and recipe.dropout > 0:  # the weights multiply what dropout left, beside what the base is given
        copied += sum(module.parameters for module in recipe.adapted)
    return BF16_BYTES * copied / (shape.layers if recipe.checkpointing else 1)


def _adapted_experts_bytes(shape: ModelShape, recipe: Recipe) -> float:
    """Sums of experts and their updates, which peft makes in each pass and keeps for the backward pass, and a gradient.

    Measured (8 and 16 experts, peft 0.21): 4.0 bytes a weight in fp32, and 2.3 under autocast, where 2 are counted here
    and the rest as the factors' 16-bit copies.
    """
    sums = sum(weight.parameters for weight in recipe.fused) / (shape.layers if recipe.checkpointing else 1)
    return recipe.base_bytes * (sums + max((weight.parameters for weight in recipe.fused), default=0))


def _direction_bytes(recipe: Recipe) -> float:
    """What DoRA needs for the norms of a module's rows: the unit matrix, and four times the weight in fp32."""
    if not recipe.dora:
        return 0.0
    sizes = (one.in_features * (one.in_features + 4 * one.out_features) for one in recipe.adapted)
    return float(FP32_BYTES * max(sizes, default=0))


def _head_bytes(shape: ModelShape, recipe: Recipe, micro_batch: MicroBatch) -> float:
    """Logits, the head's input in 16 bit and its gradient in fp32, at the positions whose token is learned."""
    positions = micro_batch.learned_tokens
    if recipe.device == "cpu":
        return positions * (shape.vocab_size * CPU_LOGIT_BYTES + shape.hidden_size * 2 * FP32_BYTES)
    tile = min(positions, HEAD_TILE_TOKENS) * min(shape.vocab_size, HEAD_TILE_VOCABULARY) * BF16_BYTES
    weight_gradient = FP32_BYTES * shape.vocab_size * shape.hidden_size if recipe.method == "full" else 0
    return tile + positions * shape.hidden_size * (BF16_BYTES + FP32_BYTES) + weight_gradient


def _gathered_bytes(shape: ModelShape, recipe: Recipe) -> float:
    """Under FSDP: the layer at work and the one fetched ahead, and the root unit with embedding and head, whole."""
    if not recipe.sharded:
        return 0.0
    whole = replace(recipe, sharded=False)
    outside = (shape.parameters - shape.linear_parameters - shape.fused_parameters) * recipe.base_bytes
    in_layers = max(0.0, _weight_bytes(shape, whole) - outside)
    return 2 * in_layers / shape.layers + outside


def _largest(linears: Iterable[LinearModule]) -> int:
    return max((linear.in_features * linear.out_features for linear in linears), default=0)
