"""Tokens per second of a training, from its floating-point work and what such trainings reach of a device's peak.

Work per token, N being the weights a token is multiplied with and a the attention's forward operations: 4N + 3a for
LoRA (the frozen base needs no weight gradients), 6N + 3a for a full fine-tune; checkpointing repeats the forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tuneline.contracts.artifacts import Estimate
from tuneline.planning.hardware import Device
from tuneline.planning.memory import NF4_BITS, Recipe
from tuneline.planning.model_shape import ModelShape

PACKED_UTILISATION = Estimate(low=0.3, expected=0.4, high=0.5)
"""Share of the peak: published LoRA runs reach 0.32 to 0.42 (4N convention) on A100 and H100."""
PADDED_UTILISATION = Estimate(low=0.2, expected=0.3, high=0.4)
"""The same where attention is not varlen and nothing is compiled."""
CPU_UTILISATION = Estimate(low=0.4, expected=0.8, high=1.1)
"""Share of the single-core figures below that every core of several reaches, the machine's other work included."""
CPU_BF16_FLOPS_PER_CORE, CPU_BF16_HALF_WEIGHTS = 208e9, 4.1e6
CPU_FP32_FLOPS_PER_CORE, CPU_FP32_HALF_WEIGHTS = 100e9, 3.1e6
"""One Xeon core with AMX, LoRA steps on joined rows, half of the tokens learned, 4N convention: speed = F * N / (N +
half). Measured at N = 2.8, 15.7 and 134 M: 85, 154, 202 GFLOP/s under bf16 autocast and 47, 80, 98 in fp32; the formula
is within 7 % of each. A core without AMX is at the lower end of the interval under bf16."""
CPU_DEQUANTISE_BYTES_PER_SECOND = 5.5e9
"""NF4 to fp32 on one such core, bitsandbytes 0.50, measured."""
DEQUANTISED_BYTES = 4
"""Each pass over an NF4 weight writes and reads its 16-bit form."""


@dataclass(frozen=True)
class Compilation:
    """What `training.compile` costs once, and the share of a step that it saves."""

    seconds: float
    saved_share: float


COMPILATION: Mapping[str, Compilation] = MappingProxyType(
    {
        # A layer's kind compiled once: 9.2 M parameter Llama, LoRA r = 16, one Xeon core with AMX, measured.
        "cpu": Compilation(28.0, 0.15),
        # axolotl's docs/optimizations.qmd: 14 to 19 % of a step of Qwen3-8B LoRA, for whole models, after 5 to 15 min.
        "gpu": Compilation(600.0, 0.16),
    }
)


def tokens_per_second(
    shape: ModelShape,
    recipe: Recipe,
    device: Device,
    *,
    devices: int,
    cores: int,
    packing: bool,
    micro_batch_tokens: float,
    row_tokens: float,
    useful_share: float,
) -> Estimate:
    """Estimate the speed over all devices, counting tokens of the data and not padding.

    Args:
        shape: the model.
        recipe: how it is trained.
        device: what it is trained on.
        devices: how many of them.
        cores: cores in use where the device is a CPU.
        packing: no padding, varlen attention.
        micro_batch_tokens: tokens in an average micro-batch, padding included.
        row_tokens: tokens of an average row.
        useful_share: tokens of the data among those computed.
    """
    flops = flops_per_token(shape, recipe, row_tokens)
    share, peak = _utilisation(device, packing=packing), _peak(shape, recipe, device, cores)
    tax = _dequantise_seconds(shape, recipe, device, cores) / micro_batch_tokens

    def speed(utilisation: float) -> float:
        return devices * useful_share / (flops / (utilisation * peak) + tax)

    return Estimate(low=speed(share.low), expected=speed(share.expected), high=speed(share.high))


def dequantise_share(
    shape: ModelShape,
    recipe: Recipe,
    device: Device,
    *,
    cores: int,
    packing: bool,
    micro_batch_tokens: float,
    row_tokens: float,
) -> float:
    """Share of the time in which NF4 weights are expanded; arguments as those of `tokens_per_second`."""
    tax = _dequantise_seconds(shape, recipe, device, cores) / micro_batch_tokens
    reached = _utilisation(device, packing=packing).expected * _peak(shape, recipe, device, cores)
    return tax / (tax + flops_per_token(shape, recipe, row_tokens) / reached)


def model_flops_per_token(shape: ModelShape, recipe: Recipe) -> float:
    """Floating-point operations that a token's training needs by the model's weights alone: 4N, or 6N where all train.

    What published shares of the peak (MFU) count: no attention, and nothing that checkpointing repeats.
    """
    return float((6 if recipe.method == "full" else 4) * shape.matmul_parameters)


def peak_flops_per_second(device: Device, recipe: Recipe, devices: int) -> float | None:
    """Dense peak of all devices in the number format of the products; None for a CPU, whose peak is not stated."""
    if device.kind == "cpu":
        return None
    return devices * _gpu_peak(device, recipe)


def _utilisation(device: Device, *, packing: bool) -> Estimate:
    if device.kind == "cpu":
        return CPU_UTILISATION
    return PACKED_UTILISATION if packing else PADDED_UTILISATION


def _peak(shape: ModelShape, recipe: Recipe, device: Device, cores: int) -> float:
    return _gpu_peak(device, recipe) if device.kind == "gpu" else cores * _cpu_flops_per_core(shape, recipe)


def _gpu_peak(device: Device, recipe: Recipe) -> float:
    return device.half_flops_per_second if recipe.autocast else device.fp32_flops_per_second


def flops_per_token(shape: ModelShape, recipe: Recipe, row_tokens: float) -> float:
    """Floating-point operations per token of a training step, recomputation and a reference's passes included."""
    attention = 2 * shape.layers * shape.attention_size * row_tokens
    forward_passes = recipe.extra_forward_passes + recipe.checkpointing
    return (
        model_flops_per_token(shape, recipe)
        + 3 * attention
        + forward_passes * (2 * shape.matmul_parameters + attention)
    )


def _cpu_flops_per_core(shape: ModelShape, recipe: Recipe) -> float:
    weights = shape.matmul_parameters
    if recipe.autocast:
        return CPU_BF16_FLOPS_PER_CORE * weights / (weights + CPU_BF16_HALF_WEIGHTS)
    return CPU_FP32_FLOPS_PER_CORE * weights / (weights + CPU_FP32_HALF_WEIGHTS)


def _dequantise_seconds(shape: ModelShape, recipe: Recipe, device: Device, cores: int) -> float:
    """Seconds per micro-batch in which NF4 weights are expanded, whatever its number of tokens."""
    if recipe.method != "qlora":
        return 0.0
    passes = 2 + recipe.checkpointing + recipe.extra_forward_passes
    moved_bytes = passes * shape.linear_parameters * (NF4_BITS / 8 + DEQUANTISED_BYTES)
    speed = device.memory_bytes_per_second if device.kind == "gpu" else cores * CPU_DEQUANTISE_BYTES_PER_SECOND
    return moved_bytes / speed
