"""How much of the model is adapted and quantised, counted on the model itself rather than believed."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from tuneline.contracts.artifacts import ModuleCoverage

_ADAPTER_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "lora_dropout")


@dataclass(frozen=True)
class _Weight:
    """A linear module's weight, or a fused weight of experts."""

    name: str
    parameters: int
    adapted: bool
    quantised: bool


def coverage(model: Any) -> tuple[ModuleCoverage, ...]:
    """Count for each class of linear module (`q_proj`) and fused weight (`experts.down_proj`) what is adapted.

    In a full training, what is trained counts as adapted.
    """
    classes: dict[str, list[_Weight]] = defaultdict(list)
    for weight in _weights(model):
        classes[weight.name].append(weight)
    return tuple(_line(name, classes[name]) for name in sorted(classes))


def describe(lines: tuple[ModuleCoverage, ...]) -> str:
    """Write a line for each class: how many are adapted, and the shares of their parameters."""
    return "\n".join(
        f"{line.module:<24} {line.adapted:>5} of {line.total:<5} adapted {line.adapted_share:>7.1%}"
        f"  quantised {line.quantised_share:>7.1%} of {line.parameters:,} parameters"
        for line in lines
    )


def _line(name: str, weights: list[_Weight]) -> ModuleCoverage:
    return ModuleCoverage(
        module=name,
        adapted=sum(weight.adapted for weight in weights),
        total=len(weights),
        parameters=sum(weight.parameters for weight in weights),
        adapted_parameters=sum(weight.parameters for weight in weights if weight.adapted),
        quantised_parameters=sum(weight.parameters for weight in weights if weight.quantised),
    )


def _weights(model: Any) -> Iterator[_Weight]:
    """Yield each weight once: an adapted one is inside the module that adapts it."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    wrapped = {
        id(layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight) for layer in layers
    }
    for name, module in model.named_modules():
        if any(part in _ADAPTER_PARTS for part in name.split(".")):
            continue
        path = name.replace(".base_layer", "")
        if isinstance(module, nn.Linear):
            weight = module.weight
            size = module.in_features * module.out_features  # NF4 packs two into a byte
            adapted = id(weight) in wrapped or weight.requires_grad
            yield _Weight(path.rpartition(".")[2], size, adapted, isinstance(module, Linear4bit))
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:
                adapted = id(parameter) in wrapped or parameter.requires_grad
                short = f"{path.rpartition('.')[2]}.{parameter_name}"
                yield _Weight(short, parameter.numel(), adapted, quantised=False)
