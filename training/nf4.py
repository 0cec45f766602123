"""NF4 with double quantisation, as QLoRA freezes its base (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from typing import Any

import torch
from bitsandbytes import functional as bnb
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

BLOCK_SIZE = 64
"""Weights that share a scale: section 3 of the paper, and the default of bitsandbytes' `Params4bit`."""


def quantization_config(compute: torch.dtype, storage: torch.dtype) -> Any:
    """Describe the quantisation to transformers.

    Args:
        compute: number format of the products with the dequantised weights.
        storage: number format that holds the packed weights; FSDP can only shard one that equals the base's.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=storage,
    )


def quantised_modules(model: torch.nn.Module) -> tuple[str, ...]:
    """Name the modules that bitsandbytes holds in NF4, as the base model names them."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, Linear4bit))


def round_trip(weight: torch.Tensor) -> torch.Tensor:
    """Return what the NF4 base computes with in place of `weight`; same shape, dtype and device.

    The weight must have the dtype it had when the base was loaded for training, because that is the dtype in which
    bitsandbytes gives it back. Quantising anew from the file is the only safe source: on CPUs with AVX512-BF16,
    bitsandbytes repacks a live layer at its first forward pass in eval mode, and dequantises noise afterwards.
    """
    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    dequantised: torch.Tensor = bnb.dequantize_4bit(packed, state)
    return dequantised


def keep_unpacked(model: torch.nn.Module) -> None:
    """Put the NF4 layers (only them) in train mode, in which bitsandbytes never repacks; they have no dropout."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.train()
