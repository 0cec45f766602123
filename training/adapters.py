"""What is trained: low-rank factors beside chosen linear modules (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tuneline.contracts.artifacts import ModuleCoverage
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.spec import AdapterSpec

ALL_LINEAR = "all-linear"


def add_adapter(model: Any, spec: AdapterSpec) -> Any:
    """Put float32 low-rank factors beside the target modules.

    Raises:
        UserError: when a target matches no linear module, is the output head, or cannot be adapted.
    """
    targets = [spec.target_modules] if isinstance(spec.target_modules, str) else list(spec.target_modules)
    check_targets(model, targets)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse targets that would train nothing, or not what the user means.

    Raises:
        UserError: with every problem, naming the linear modules that the model has.
    """
    linear = linear_modules(model)
    heads = output_heads(model)
    classes = sorted({_class_of(name) for name in linear if name not in heads})
    problems = []
    for target in targets:
        where = f"adapter.target_modules: {target}"
        if target == ALL_LINEAR:
            problems += [_fused(name, classes) for name in fused_experts(model)]
        elif any(_matches(head, target) for head in heads):
            fix = f"the head's loss kernel would leave it untrained; choose from {', '.join(classes)}"
            problems.append(Problem("the output head cannot be adapted", where, fix))
        elif not any(_matches(name, target) for name in linear):
            problems.append(Problem("no linear module has this name", where, f"choose from {', '.join(classes)}"))
    if problems:
        raise UserError(problems)


def _fused(name: str, classes: Sequence[str]) -> Problem:
    fix = f"name the modules to adapt, from {', '.join(classes)}; the experts then stay as they are"
    return Problem(
        f"{name} fuses a mixture's experts in one tensor, which LoRA passes by", "adapter.target_modules", fix
    )


def linear_modules(model: Any) -> list[str]:
    """Name the model's linear modules, NF4 ones included."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def output_heads(model: Any) -> set[str]:
    """Name the module that gives the logits."""
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if module is head}


def fused_experts(model: Any) -> list[str]:
    """Name the classes of three-dimensional weights: experts of a mixture in one tensor."""
    return sorted({_class_of(name) for name, weight in model.named_parameters() if weight.dim() == 3})


def coverage(model: Any) -> tuple[ModuleCoverage, ...]:
    """Count, for each class of linear module (`q_proj`), how many are adapted; for a full training, all are."""
    adapted: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            adapted[_class_of(name)] += 1
            total[_class_of(name)] += 1
        elif isinstance(module, nn.Linear) and not _inside_adapter(name):
            total[_class_of(name)] += 1
            adapted[_class_of(name)] += module.weight.requires_grad
    return tuple(ModuleCoverage(module=name, adapted=adapted[name], total=total[name]) for name in sorted(total))


def trainable_parameters(model: Any) -> list[torch.nn.Parameter]:
    """List the parameters that the optimizer moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def hold_trainables_in_float32(model: Any) -> None:
    """Cast the trainable parameters to float32.

    TRL 1.16 casts the adapter of a quantised base to bfloat16 in its constructor, and Adam's moments would follow.
    """
    for parameter in trainable_parameters(model):
        parameter.data = parameter.data.float()


def _class_of(name: str) -> str:
    return name.rpartition(".")[2]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _inside_adapter(name: str) -> bool:
    return any(part in {"base_layer", "lora_A", "lora_B"} for part in name.split("."))
