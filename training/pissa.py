"""PiSSA: factors that start at the base's principal components (Meng et al. 2024, https://arxiv.org/abs/2404.02948).

The base W is taken apart into its largest components B0 A0 and a remainder R, which is frozen in the base's number
format; B A starts at B0 A0. Against the base as it was, what is trained is the plain low-rank update B A - B0 A0 of
twice the rank, and that is what is stored: it means the same to every program that reads it. R is made anew from W and
the second halves of the stored factors, by the same arithmetic, so that the merge rests on what training computed with.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from training.precision import training_device

ITERATIONS = 16
"""Of the randomised decomposition, which the paper finds as good as the exact one with so many (section 4.3)."""
ADAPTER = "default"
START = "first_factors.safetensors"
"""Beside the checkpoints, so that it goes when they do."""


def take_apart(model: Any, start: Path) -> None:
    """Start a fresh adapter at the base's largest components, and leave the remainder in the base.

    peft 0.21 rounds the factors to the base's number format after it has taken them out of the base, so that the model
    would start off beside the base; here the remainder belongs to the factors as they are.

    Args:
        model: a PEFT model of a base in 16 or 32 bit.
        start: file of the first factors: read when it is there, so that a resumed training has the same remainder
            on another machine too, and written when it is not.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    first = load_file(start) if start.exists() else _largest_components(layers)
    if not start.exists() and PartialState().is_main_process:
        start.parent.mkdir(parents=True, exist_ok=True)
        aside = start.with_suffix(".partial")
        save_file(first, aside)
        aside.replace(start)
    for name, layer in layers.items():
        up, down, base = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight, layer.get_base_layer()
        down.data = first[f"{name}.lora_A.weight"].to(down.device)
        up.data = first[f"{name}.lora_B.weight"].to(up.device)
        base.weight.data = remainder(base.weight.data, up.data, down.data, layer.scaling[ADAPTER])


def _largest_components(layers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Decompose each weight: equations 2 and 3 of the paper, divided by the adapter's scale."""
    factors = {}
    device = training_device()
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight.data.float().to(device)
        with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
            torch.manual_seed(0)  # the same on every rank, and a resumed training draws as many numbers as this one
            left, values, right = torch.svd_lowrank(weight, layer.r[ADAPTER], niter=ITERATIONS)
        roots = (values / layer.scaling[ADAPTER]).sqrt()
        factors[f"{name}.lora_A.weight"] = (roots[:, None] * right.T).contiguous().cpu()
        factors[f"{name}.lora_B.weight"] = (left * roots).contiguous().cpu()
    return factors


def remainder(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what the first factors leave of a weight, in its dtype."""
    return (weight.float() - scale * (up @ down)).to(weight.dtype)


def as_plain_lora(
    state: Mapping[str, torch.Tensor], first: Mapping[str, torch.Tensor], config: LoraConfig
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """Write B A - B0 A0 as one product of twice the rank: [B, -B0] [A; A0].

    Args:
        state: trained factors by their names in the file, and DoRA's magnitudes, which stay.
        first: the factors that they started as.
        config: of the training; the one returned has the same scale at twice the rank.
    """
    plain = {}
    for name, tensor in state.items():
        if name.endswith("lora_A.weight"):
            tensor = torch.cat([tensor, first[name].to(tensor.device)], dim=0)
        elif name.endswith("lora_B.weight"):
            tensor = torch.cat([tensor, -first[name].to(tensor.device)], dim=1)
        plain[name] = tensor
    doubled = copy.deepcopy(config)
    doubled.init_lora_weights = True
    doubled.r = 2 * config.r
    doubled.lora_alpha = config.lora_alpha * (2**0.5 if config.use_rslora else 2)
    return plain, doubled


def restore(model: Any, dtype: torch.dtype) -> None:
    """Turn a model with the stored adapter into the one that was trained: the remainder, in `dtype`, and B A."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            up, down = layer.lora_B[ADAPTER].weight.data, layer.lora_A[ADAPTER].weight.data
            rank = down.shape[0] // 2
            weight = base.weight.data.to(dtype)
            left = remainder(weight, -up[:, rank:], down[rank:], layer.scaling[ADAPTER])
            base.weight.data = left.to(base.weight.dtype)
            up[:, rank:] = 0.0
