"""The modules that a model's tensors make once transformers 5 has loaded them.

Files have a matrix for each expert of a mixture; in memory the same matrix of all experts is one fused weight.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tuneline.contracts.targets import FUSED_FROM
from tuneline.planning.analytic import TensorShapes

_IN_A_LAYER = re.compile(r"(?P<path>.*\.\d+\.(?:.+\.)?(?P<module>\w+))\.weight$")
_EXPERT = re.compile(r"(?P<block>.*\.\d+\..*experts)\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight$")
_FUSED = re.compile(r".*\.\d+\..*experts\.\w+$")
_ROUTERS = ("gate", "router")
"""Modules that choose a token's experts: a bare weight in transformers 5, and no linear module."""
_SAME_BLOCK = {".block_sparse_moe.": ".mlp."}
"""What Mixtral's files call a block, and transformers 5."""


@dataclass(frozen=True)
class LinearModule:
    """Linear layers of one name and size: `q_proj`, once in each layer of the model."""

    name: str
    in_features: int
    out_features: int
    paths: tuple[str, ...]
    """Their full names."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.paths)

    @property
    def parameters(self) -> int:
        """Weights of all of them, without biases."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class FusedWeight:
    """The same matrix of all experts of a layer, in one three-dimensional weight."""

    path: str
    """Full name of the parameter."""
    experts: int
    in_features: int
    out_features: int

    @property
    def parameters(self) -> int:
        """Its weights."""
        return self.experts * self.in_features * self.out_features


def linears_of(tensors: TensorShapes) -> tuple[LinearModule, ...]:
    """Gather the linear modules inside the layers from the shapes of the tensors in the files."""
    paths: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    routed = {path.rpartition(".experts.")[0] for path in _experts_of(tensors)}
    for key, shape in tensors.items():
        match = _IN_A_LAYER.search(key)
        if match is None or len(shape) != 2 or _fused_path(key):
            continue
        block, _, module = _as_loaded(match["path"]).rpartition(".")
        if module in _ROUTERS and block in routed:
            continue
        out_features, in_features = shape
        paths[module, in_features, out_features].append(f"{block}.{module}")
    return tuple(LinearModule(*key, tuple(found)) for key, found in paths.items())


def fused_of(tensors: TensorShapes) -> tuple[FusedWeight, ...]:
    """Gather the fused weights from the shapes of the tensors in the files."""
    weights = []
    for path, shapes in _experts_of(tensors).items():
        matrices = 2 if path.endswith("gate_up_proj") else 1
        experts = shapes[0][0] if len(shapes[0]) == 3 else len(shapes) // matrices
        in_features = shapes[0][-1]
        elements = sum(math.prod(shape) for shape in shapes)
        weights.append(FusedWeight(path, experts, in_features, elements // (experts * in_features)))
    return tuple(weights)


def _experts_of(tensors: TensorShapes) -> Mapping[str, list[tuple[int, ...]]]:
    """Gather the shapes in the files of what is one fused weight in memory."""
    found: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for key, shape in tensors.items():
        path = _fused_path(key) or (key if len(shape) == 3 and _FUSED.match(key) else None)
        if path:
            found[_as_loaded(path)].append(shape)
    return found


def _fused_path(key: str) -> str | None:
    match = _EXPERT.match(key)
    return f"{match['block']}.{FUSED_FROM[match['matrix']]}" if match and match["matrix"] in FUSED_FROM else None


def _as_loaded(path: str) -> str:
    for old, new in _SAME_BLOCK.items():
        path = path.replace(old, new)
    return path
