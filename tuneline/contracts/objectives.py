"""What rows teach: which objective goes with which kind of rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from tuneline.contracts.errors import UserError
from tuneline.contracts.records import Kind

Objective = Literal["sft", "dpo", "orpo", "kto"]

OBJECTIVES: Final[Mapping[Kind, tuple[Objective, ...]]] = MappingProxyType(
    {
        "conversation": ("sft",),
        "text": ("sft",),
        "preference": ("dpo", "orpo"),
        "unpaired_preference": ("kto",),
    }
)
"""What each kind of rows can be trained with; `auto` takes the first."""
WITH_REFERENCE: Final[frozenset[Objective]] = frozenset({"dpo", "kto"})
"""Objectives that hold the model to the one that it was before its first step."""
ROWS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "conversation": "conversations",
        "text": "plain texts",
        "preference": "preference pairs",
        "unpaired_preference": "answers with a label",
    }
)
"""The kinds in words."""


def objective_of(asked: str, kind: Kind) -> Objective:
    """Choose the objective for a kind of rows.

    Args:
        asked: `training.objective`.
        kind: of the prepared rows.

    Raises:
        UserError: the rows cannot be trained with the objective that was asked for.
    """
    possible = OBJECTIVES[kind]
    chosen = next((objective for objective in possible if asked in ("auto", objective)), None)
    if chosen is None:
        fits = next(of for of, objectives in OBJECTIVES.items() if asked in objectives)
        raise UserError.of(
            f"training.objective {asked} takes {ROWS[fits]}, and the rows are {ROWS[kind]}",
            "training.objective, data.format",
            f"set training.objective to {' or '.join(possible)} (auto does), or give data.train rows of another format",
        )
    return chosen


@dataclass(frozen=True)
class LossWeights:
    """What KTO multiplies the losses of wanted and of unwanted answers with."""

    desirable: float
    undesirable: float


BALANCE = (1.0, 4 / 3)
"""Weighted wanted rows over weighted unwanted ones, least and most (equation 8 of https://arxiv.org/abs/2402.01306)."""


def loss_weights(desirable: int, undesirable: int) -> LossWeights:
    """Weigh the rarer kind of answers up, as far as the balance needs; there is at least one of each.

    Args:
        desirable: rows whose answer is wanted.
        undesirable: the others.
    """
    least, most = BALANCE
    ratio = desirable / undesirable
    if ratio < least:
        return LossWeights(desirable=least / ratio, undesirable=1.0)
    if ratio > most:
        return LossWeights(desirable=1.0, undesirable=ratio / most)
    return LossWeights(1.0, 1.0)
