"""What an adapter adds to each weight of the base, computed by peft's own code without the base in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners import lora
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

PREFIX = "base_model.model."
"""What peft puts before the base's own name of a module."""


@dataclass(frozen=True)
class LowRankUpdate:
    """The factors of one weight: `down` of shape (rank, inputs), `up` of shape (outputs, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    config: LoraConfig

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        return (self.up.shape[0], self.down.shape[1])

    @property
    def is_zero(self) -> bool:
        """Whether training never moved it: `up` starts at zero."""
        return not bool(self.up.any())

    def delta(self) -> torch.Tensor:
        """Return the float32 update of shape (outputs, inputs), scaled as peft scales it while training."""
        with torch.device("meta"):
            frozen = nn.Linear(self.down.shape[1], self.up.shape[0], bias=False)
            layer = lora.Linear(frozen, "default", self.config, r=self.config.r, lora_alpha=self.config.lora_alpha)
        layer.lora_A["default"].weight = nn.Parameter(self.down.float(), requires_grad=False)
        layer.lora_B["default"].weight = nn.Parameter(self.up.float(), requires_grad=False)
        delta: torch.Tensor = layer.get_delta_weight("default")
        return delta


def read_updates(adapter: Path) -> Mapping[str, LowRankUpdate]:
    """Read a PEFT folder: the update of each weight, under the weight's name in the base's files.

    Raises:
        ValueError: when a factor has no partner, or the folder holds more than pairs of factors.
    """
    config = LoraConfig.from_pretrained(adapter)
    tensors: dict[str, torch.Tensor] = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    expected = {f"{PREFIX}{module}.{side}.weight" for module in modules for side in ("lora_A", "lora_B")}
    if expected != set(tensors):
        raise ValueError(f"the adapter is not made of pairs of factors: {sorted(expected ^ set(tensors))}")

    def factor(module: str, side: str) -> torch.Tensor:
        return tensors[f"{PREFIX}{module}.{side}.weight"]

    return {
        f"{module}.weight": LowRankUpdate(factor(module, "lora_A"), factor(module, "lora_B"), config)
        for module in sorted(modules)
    }
