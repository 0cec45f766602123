"""Which weights an adapter's targets mean: one reading of the config for the plan and for the training.

Names are those of transformers' modules. A fused weight is a three-dimensional parameter that holds all experts of a
layer: transformers 5 builds it where the files have a matrix for each expert.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tuneline.contracts.adapter_spec import ALL_LINEAR, REGEX, AdapterSpec
from tuneline.contracts.errors import Problem

FUSED_FROM: Mapping[str, str] = MappingProxyType(
    {
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
        "down_proj": "down_proj",
        "w1": "gate_up_proj",
        "w3": "gate_up_proj",
        "w2": "down_proj",
    }
)
"""An expert's matrices as files name them, and the fused parameter that transformers 5 makes of all experts'."""
_ALTERNATIVES = re.compile(r"\((?:\?:)?([^()]*\|[^()]*)\)")
_BEFORE_LAYER = re.compile(r"^.*?\.\d+\.")


@dataclass(frozen=True)
class Adaptable:
    """Full names of what a model has to be adapted."""

    linears: tuple[str, ...]
    """Linear modules inside the layers."""
    outside: tuple[str, ...] = ()
    """The output head and the embeddings, which cannot be adapted."""
    fused: tuple[str, ...] = ()
    """Fused weights."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Last parts of the linear modules' names, each once."""
        return tuple(dict.fromkeys(class_of(path) for path in self.linears))

    @property
    def fused_classes(self) -> tuple[str, ...]:
        """Names of the fused weights inside a layer (`mlp.experts.down_proj`), each once."""
        return tuple(dict.fromkeys(_BEFORE_LAYER.sub("", path) for path in self.fused))


def class_of(path: str) -> str:
    """Return the last part of a module's name: `q_proj`."""
    return path.rpartition(".")[2]


def target_names(adapter: AdapterSpec) -> tuple[str, ...]:
    """Return the config's targets as a tuple."""
    targets = adapter.target_modules
    return (targets,) if isinstance(targets, str) else targets


def adapts_module(adapter: AdapterSpec, path: str) -> bool:
    """Whether the config adapts the linear module of this name, which is inside a layer."""
    return any(_matches(target, path) for target in target_names(adapter))


def adapts_parameter(adapter: AdapterSpec, path: str) -> bool:
    """Whether the config adapts the fused weight of this name."""
    return any(_is_or_ends_with(path, target) for target in adapter.target_parameters)


def target_problems(adapter: AdapterSpec, model: Adaptable) -> list[Problem]:
    """List the targets that match nothing or nothing that can be adapted, and the fused weights that they pass by."""
    problems = [problem for target in target_names(adapter) for problem in _module_problems(target, model)]
    problems += [problem for target in adapter.target_parameters for problem in _parameter_problems(target, model)]
    return [*problems, *_passed_by(adapter, model)]


def _matches(target: str, path: str) -> bool:
    if target == ALL_LINEAR:
        return True
    if target.startswith(REGEX):
        return re.fullmatch(target.removeprefix(REGEX), path) is not None
    return _is_or_ends_with(path, target)


def _is_or_ends_with(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _module_problems(target: str, model: Adaptable) -> Iterator[Problem]:
    if target == ALL_LINEAR:
        return
    where = "adapter.target_modules"
    if any(_matches(target, path) for path in model.outside):
        what = f"`{target}` cannot be adapted: the loss is computed from the head's weight directly, past any adapter"
        yield Problem(what, where, f"leave it out; adapt some of {', '.join(model.classes)}")
    elif not any(_matches(target, path) for path in model.linears):
        yield Problem(f"`{target}` matches no linear module", where, _nearest(target, model))
    elif target.startswith(REGEX):
        for alternative in _idle_alternatives(target.removeprefix(REGEX), model.linears):
            what = f"the alternative `{alternative}` matches no linear module"
            yield Problem(what, where, _nearest(alternative, model))


def _parameter_problems(target: str, model: Adaptable) -> Iterator[Problem]:
    if any(_is_or_ends_with(path, target) for path in model.fused):
        return
    where, available = "adapter.target_parameters", model.fused_classes
    if not available:
        what = f"`{target}` matches nothing: the model has no fused experts"
        yield Problem(what, where, "name linear modules in adapter.target_modules")
    else:
        hint = _did_you_mean(target, available)
        yield Problem(f"`{target}` matches no fused weight", where, f"{hint}the model has {', '.join(available)}")


def _passed_by(adapter: AdapterSpec, model: Adaptable) -> Iterator[Problem]:
    """Fused weights that the targets mean and do not reach, since they are no linear modules."""
    names = target_names(adapter)
    meant = {FUSED_FROM.get(name, name) for name in map(class_of, names)}
    missed = [
        _BEFORE_LAYER.sub("", path)
        for path in model.fused
        if not adapts_parameter(adapter, path) and (ALL_LINEAR in names or class_of(path) in meant)
    ]
    for name in dict.fromkeys(missed):
        what = f"{name} fuses a mixture's experts in one tensor, which LoRA on modules passes by"
        fix = f"add {name} to adapter.target_parameters, or name the modules to adapt, from {', '.join(model.classes)}"
        yield Problem(what, "adapter.target_modules", fix)


def _idle_alternatives(pattern: str, paths: Sequence[str]) -> Iterator[str]:
    """Yield the alternatives of a pattern's groups, and of the pattern itself, that no name needs."""
    for group in _ALTERNATIVES.finditer(f"({pattern})" if "(" not in pattern else pattern):
        outer = pattern if "(" in pattern else group[0]
        for alternative in group[1].split("|"):
            alone = outer.replace(group[0], f"(?:{alternative})", 1)
            if not any(re.fullmatch(alone, path) for path in paths):
                yield alternative


def _nearest(target: str, model: Adaptable) -> str:
    available = ", ".join(model.classes)
    pattern = target.removeprefix(REGEX)
    if target.startswith(REGEX) and any(re.search(pattern, path) for path in model.linears):
        return f"it must match the whole name, as `{REGEX}.*{pattern}`"
    fused = FUSED_FROM.get(class_of(target))
    for name in model.fused_classes:
        if fused == class_of(name):
            return f"the experts are fused: add {name} to adapter.target_parameters; the model has {available}"
    return f"{_did_you_mean(class_of(pattern), model.classes)}the model has {available}"


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`? " if close else ""
