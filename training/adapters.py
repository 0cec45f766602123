"""What is trained: low-rank factors beside chosen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from training import pissa
from training.pissa import ADAPTER
from tuneline.contracts.adapter_spec import ALL_LINEAR, AdapterSpec
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.targets import Adaptable, adapts_module, adapts_parameter, target_problems

WRAPPED = ".base_layer"
"""peft's name of what it put an adapter around; wrappers of several fused weights of a module are nested."""


def add_adapter(model: Any, spec: AdapterSpec, start: Path) -> Any:
    """Put float32 low-rank factors beside the targets.

    Args:
        model: the frozen base.
        spec: section `adapter`.
        start: file of PiSSA's first factors, read when it is there and written when it is not.

    Raises:
        UserError: when a target matches nothing, cannot be adapted or passes fused experts by, and when peft adapted
            other weights than the config names.
    """
    available = adaptable(model)
    if problems := target_problems(spec, available):
        raise UserError(problems)
    config = lora_config(spec, available)
    adapted = get_peft_model(model, config)
    check_targets(adapted, spec, available)
    if spec.initialisation == "pissa":
        pissa.take_apart(adapted, start)
    if spec.dora:
        start_magnitudes(adapted)
    return adapted


def lora_config(spec: AdapterSpec, available: Adaptable) -> LoraConfig:
    """Translate the section `adapter` for peft."""
    targets: str | list[str]
    if spec.target_modules == ALL_LINEAR and not available.fused:
        targets = ALL_LINEAR
    else:
        # Names in full: of the short names in a mixture, peft 0.21 makes adapters on the router and on fused experts.
        targets = [path for path in available.linears if adapts_module(spec, path)]
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        target_modules=targets,
        target_parameters=list(spec.target_parameters) or None,
        task_type="CAUSAL_LM",
    )


def adaptable(model: Any) -> Adaptable:
    """Name the weights of a base that can be adapted, and its output head."""
    head = model.get_output_embeddings()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    outside = [name for name, module in model.named_modules() if module in (head, model.get_input_embeddings())]
    fused = [name for name, weight in model.named_parameters() if weight.dim() == 3]
    return Adaptable(tuple(linears), tuple(outside), tuple(fused))


def check_targets(model: Any, spec: AdapterSpec, available: Adaptable) -> None:
    """Compare what peft adapted with what the config names.

    Raises:
        UserError: naming the weights that are adapted and should not be, or the other way round.
    """
    adapted = {base_name(name, module) for name, module in lora_layers(model)}
    wanted = {path for path in available.linears if adapts_module(spec, path)}
    wanted |= {path for path in available.fused if adapts_parameter(spec, path)}
    problems = [
        Problem(f"peft {did} {', '.join(sorted(names)[:5])} ({len(names)} in all)", "adapter", "name other targets")
        for did, names in (("passed by", wanted - adapted), ("adapted unasked", adapted - wanted))
        if names
    ]
    if problems:
        raise UserError(problems)


def start_magnitudes(model: Any) -> None:
    """Start DoRA's magnitudes at the norms of the base's rows, so that the model starts at the base.

    peft 0.21 computes them in the base's number format: in bfloat16, off by up to 0.4 %.
    """
    for _, layer in lora_layers(model):
        weight = dequantize_module_weight(layer.get_base_layer()).float() + layer.get_delta_weight(ADAPTER).float()
        layer.lora_magnitude_vector[ADAPTER].weight.data = torch.linalg.norm(weight, dim=1)


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield every adapter's layer with its name in the base, which ends in `base_layer` for an inner one."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def base_name(name: str, layer: Any) -> str:
    """Return the name in the base of the module, or of the fused weight, that a layer of `lora_layers` adapts."""
    module = name.replace(WRAPPED, "")
    return f"{module}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else module


def trainable_parameters(model: Any) -> list[torch.nn.Parameter]:
    """List the parameters that the optimizer moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


Values = list[tuple[torch.nn.Parameter, torch.Tensor]]


def trainable_values(model: Any) -> Values:
    """Remember the trainable parameters' values, in float32; those of a full training are not copied."""
    return [(parameter, parameter.data.float()) for parameter in trainable_parameters(model)]


def put_back(values: Values) -> None:
    """Give parameters the values that `trainable_values` remembered.

    TRL 1.16 casts the adapter of a quantised base to bfloat16 in its constructor: Adam's moments would follow, and
    DoRA's magnitudes would be off by up to 0.4 %.
    """
    for parameter, value in values:
        parameter.data = value
