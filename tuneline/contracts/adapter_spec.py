"""What is trained: the section `adapter`, and the combinations that cannot work."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tuneline.contracts.section import Section

ALL_LINEAR = "all-linear"
REGEX = "re:"
LEAST_SCALE, LARGEST_SCALE = 0.01, 100.0
"""Scales of the update beyond which an alpha is a slip of the pen: 1 to 2 is usual, up to 45 with rslora."""


class AdapterSpec(Section):
    """What is trained: a low-rank adapter, the same on a 4-bit base, or every weight."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`qlora` freezes the base in NF4 with double quantisation; `full` trains every weight."""
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout before the adapter; 0.05 raises retained activations by 65 % on an 8B shape."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """`all-linear`, the names of the linear modules to adapt, or `re:` and a regular expression over full names."""
    target_parameters: tuple[str, ...] = ()
    """Names of fused experts' three-dimensional weights to adapt, as `mlp.experts.gate_up_proj`."""
    rslora: bool = False
    """Rank-stabilised scaling."""
    dora: bool = False
    """Magnitude and direction of each weight trained apart (DoRA); vLLM serves it merged only."""
    initialisation: Literal["zero", "pissa"] = "zero"
    """`pissa` starts the factors at the base's principal components; vLLM serves it merged only."""
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = None
    """Learning rate of the up factors over that of the down factors (LoRA+, usually 16); the same when absent."""

    @property
    def why_merged(self) -> tuple[str, ...]:
        """Why vLLM cannot serve the adapter as it is; empty for plain LoRA on a 16-bit base."""
        reasons = {
            "vLLM refuses DoRA": self.dora,
            "vLLM refuses PiSSA, whose factors stand beside what they left of the base": self.initialisation == "pissa",
            "vLLM would put an adapter fitted to NF4 weights on others": self.method == "qlora",
            "vLLM 0.32 misreads adapters of fused experts": bool(self.target_parameters),
        }
        return tuple(reason for reason, holds in reasons.items() if holds)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        if conflicts := [*_idle_keys(self), *_refused_by_peft(self), *_unusable_values(self)]:
            raise ValueError("; ".join(conflicts))
        return self


def _idle_keys(adapter: AdapterSpec) -> Iterator[str]:
    """Keys that say something about an adapter where there is none: whoever set them expects another training."""
    fields = AdapterSpec.model_fields
    changed = [name for name in fields if name != "method" and getattr(adapter, name) != fields[name].default]
    if adapter.method == "full" and changed:
        yield f"method full trains every weight and has no adapter: leave out {', '.join(changed)}"


def _refused_by_peft(adapter: AdapterSpec) -> Iterator[str]:
    if adapter.initialisation == "pissa" and adapter.method == "qlora":
        yield "pissa takes a 16-bit base apart, and qlora holds it in 4 bits: use method lora, or initialisation zero"
    if adapter.target_parameters:
        for key, on in (
            ("dora", adapter.dora),
            ("dropout", adapter.dropout > 0),
            ("initialisation pissa", adapter.initialisation == "pissa"),
        ):
            if on:
                yield f"{key} does not work on fused weights: leave it out, or leave out target_parameters"


def _unusable_values(adapter: AdapterSpec) -> Iterator[str]:
    if not adapter.target_modules and not adapter.target_parameters:
        yield "target_modules and target_parameters are empty: there is nothing to adapt"
    for target in (adapter.target_modules,) if isinstance(adapter.target_modules, str) else adapter.target_modules:
        if target.startswith(REGEX):
            yield from _broken_pattern(target)
    if not LEAST_SCALE <= adapter.scale <= LARGEST_SCALE:
        divisor = "sqrt(rank)" if adapter.rslora else "rank"
        usual = adapter.alpha / adapter.scale
        yield (
            f"alpha {adapter.alpha:g} at rank {adapter.rank} multiplies the update by {adapter.scale:.3g} "
            f"(alpha / {divisor}), and 1 to 2 is usual: set alpha to {usual:g} to {2 * usual:g}"
        )


def _broken_pattern(target: str) -> Iterator[str]:
    try:
        re.compile(target.removeprefix(REGEX))
    except re.error as error:
        yield f"target_modules {target} is no regular expression: {error}"
