"""What an adapter makes of each weight of the base, computed by peft's own code without the base in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners import lora
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

from training import pissa
from training.weights import AsTrained, FusedPair

PREFIX = "base_model.model."
"""What peft puts before the base's own name of a module."""
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class LowRankUpdate:
    """The factors of one weight: `down` of shape (rank, inputs), `up` of shape (outputs, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    config: LoraConfig
    magnitude: torch.Tensor | None = None
    """Of each output, shape (outputs,), where DoRA trained it."""
    remainder_dtype: torch.dtype | None = None
    """Number format of what PiSSA left of the weight: the second halves of the factors are what they started as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        return (self.up.shape[0], self.down.shape[1])

    @property
    def is_zero(self) -> bool:
        """Whether training never moved it: `up` starts at zero, PiSSA's first halves as its second ones."""
        if self.remainder_dtype is None:
            return not bool(self.up.any())
        rank = self.down.shape[0] // 2
        return torch.equal(self.up[:, :rank], -self.up[:, rank:]) and torch.equal(self.down[:rank], self.down[rank:])

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum in float32.

        Args:
            weight: what training computed with, in the dtype in which the base was loaded; same shape.
        """
        with torch.device("meta"):
            frozen = nn.Linear(self.down.shape[1], self.up.shape[0], bias=False)
        up = self.up.float()
        scale = self.config.lora_alpha / (self.config.r**0.5 if self.config.use_rslora else self.config.r)
        if self.remainder_dtype is not None:
            weight, up = self._taken_apart(weight, scale)
        frozen.weight = nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False)
        layer = lora.Linear(frozen, "default", self.config, r=self.config.r, lora_alpha=self.config.lora_alpha)
        assert layer.scaling["default"] == scale
        layer.lora_A["default"].weight.data = self.down.float()
        layer.lora_B["default"].weight.data = up
        if self.magnitude is not None:
            layer.lora_magnitude_vector["default"].weight.data = self.magnitude.float()
        layer.merge()
        return frozen.weight.data

    def _taken_apart(self, weight: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        rank = self.down.shape[0] // 2
        up = self.up.float().clone()
        left = pissa.remainder(weight.to(self.remainder_dtype), -up[:, rank:], self.down[rank:].float(), scale)
        up[:, rank:] = 0.0
        return left, up


@dataclass(frozen=True)
class FusedUpdate:
    """The factors of all experts of a fused weight that the base's files hold fused, too."""

    down: torch.Tensor
    """Shape (rank times experts, inputs)."""
    up: torch.Tensor
    """Shape (outputs, rank times experts)."""
    config: LoraConfig
    pair: FusedPair

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        outputs, inputs = self.up.shape[0], self.down.shape[1]
        return (self.pair.experts, inputs, outputs) if self.pair.transposed else (self.pair.experts, outputs, inputs)

    @property
    def is_zero(self) -> bool:
        """Whether training never moved it."""
        return not bool(self.up.any())

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum in float32; `weight` has the same shape."""
        module, name = nn.Module(), self.pair.parameter.rpartition(".")[2]
        module.register_parameter(name, nn.Parameter(weight.to(torch.float32, copy=True), requires_grad=False))
        setattr(module, "is_transposed", self.pair.transposed)  # noqa: B010  # nn.Module's types know no flags
        layer = lora.ParamWrapper(
            module, "default", name, self.config, r=self.config.r, lora_alpha=self.config.lora_alpha
        )
        layer.lora_A["default"].weight.data = self.down.float()
        layer.lora_B["default"].weight.data = self.up.float()
        layer.merge()
        merged: torch.Tensor = module.get_parameter(name).data
        return merged


Update = LowRankUpdate | FusedUpdate


@dataclass(frozen=True)
class Updates:
    """What an adapter's folder holds."""

    modules: Mapping[str, LowRankUpdate]
    """Of linear modules, by the weight's name."""
    fused: Mapping[str, FusedUpdate]
    """Of fused weights, by the parameter's name."""


def read_updates(adapter: Path, trained: AsTrained) -> Updates:
    """Read a PEFT folder.

    Args:
        adapter: the folder.
        trained: what the training recorded beside it.

    Raises:
        ValueError: when a factor has no partner, a magnitude has no factors, or the folder holds anything else.
    """
    config = LoraConfig.from_pretrained(adapter)
    tensors: dict[str, torch.Tensor] = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    layers = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    pairs = {pair.layer: pair for pair in trained.fused_pairs}
    sides = ["lora_A.weight", "lora_B.weight", *([MAGNITUDE] if config.use_dora else [])]
    expected = {f"{PREFIX}{layer}.{side}" for layer in layers | pairs.keys() for side in sides}
    if expected != set(tensors):
        raise ValueError(f"the adapter is not made of pairs of factors: {sorted(expected ^ set(tensors))}")

    def of(layer: str, side: str) -> torch.Tensor:
        return tensors[f"{PREFIX}{layer}.{side}"]

    dtype: torch.dtype | None = getattr(torch, trained.remainder_dtype) if trained.remainder_dtype else None
    modules = {
        f"{layer}.weight": LowRankUpdate(
            of(layer, sides[0]), of(layer, sides[1]), config, of(layer, MAGNITUDE) if config.use_dora else None, dtype
        )
        for layer in sorted(layers - pairs.keys())
    }
    fused = {
        pair.parameter: FusedUpdate(of(layer, sides[0]), of(layer, sides[1]), config, pair)
        for layer, pair in sorted(pairs.items())
    }
    return Updates(modules, fused)
