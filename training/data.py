"""Which row is read when: one order for the whole training, fixed before it starts.

The order is a pure function of lengths, batch and seed. A resumed training skips what it has read; a smaller
micro-batch with more accumulation reads the same rows in the same optimizer steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

from datasets import Dataset

from training.preference_rows import with_partners
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.objectives import Objective

PAIR_COLUMNS = ["input_ids", "labels", "rejected_input_ids", "rejected_labels"]
COLUMNS: Mapping[Objective, list[str]] = MappingProxyType(
    {
        "sft": ["input_ids", "labels"],
        "dpo": PAIR_COLUMNS,
        "orpo": PAIR_COLUMNS,
        "kto": ["input_ids", "labels", "desirable"],
    }
)
"""What each objective reads of a `PreparedRow`."""
POOL_BATCHES = 50
"""Batches that are sorted by length together: transformers' own factor for grouping by length."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of every optimizer step, one after another, and the tokens read by the end of each step."""

    dataset: Any
    """`datasets.Dataset` of the objective's columns, in reading order."""
    tokens_after_step: tuple[int, ...]
    """Index 0 is before the first step."""
    row_tokens: tuple[int, ...]
    """Tokens of each row."""
    ids: Any
    """`datasets.Dataset` of the rows' ids, in reading order."""

    def row_ids(self, after_step: int, to_step: int) -> list[str]:
        """Name the rows that are read after one optimizer step up to the end of another."""
        per_step = len(self.ids) // (len(self.tokens_after_step) - 1)
        names: list[str] = self.ids[after_step * per_step : to_step * per_step]["row_id"]
        return names


def load_rows(
    prepared: Path, steps: int, batch_rows: int, seed: int, objective: Objective = "sft", ranks: int = 1
) -> TrainingRows:
    """Read the prepared training rows and lay them out for `steps` optimizer steps of `batch_rows` rows.

    With several ranks, each reads a stretch of a step's rows; for `sft` all get rows of the same lengths.
    """
    everything = Dataset.from_file(str(prepared / PreparedData.TRAIN))
    stored = everything.select_columns(COLUMNS[objective])
    texts = [name for name in COLUMNS[objective] if name.endswith("input_ids")]
    lengths = [sum(map(len, row)) for row in zip(*(stored[name] for name in texts), strict=True)]
    # Where the length goes with the label, batches of like length would hold wanted answers only, or unwanted ones.
    order = reading_order(lengths, steps, batch_rows, seed, 1 if objective == "kto" else POOL_BATCHES)
    per_step = [sum(lengths[row] for row in batch) for batch in _cut(order, batch_rows)]
    if objective == "sft" and ranks > 1:
        order = [row for batch in _cut(order, batch_rows) for rank in range(ranks) for row in batch[rank::ranks]]
    laid_out = with_partners(stored, order, batch_rows) if objective == "kto" else stored.select(order)
    return TrainingRows(
        dataset=laid_out,
        tokens_after_step=tuple(accumulate(per_step, initial=0)),
        row_tokens=tuple(lengths[row] for row in order),
        ids=everything.select_columns(["row_id"]).select(order),
    )


def reading_order(
    lengths: Sequence[int], steps: int, batch_rows: int, seed: int, pool_batches: int = POOL_BATCHES
) -> list[int]:
    """Order the rows: each pass shuffled, rows of like length in one batch, batches shuffled.

    Rows that do not fill a pass's last batch open the next pass, so that every step has `batch_rows` rows.

    Args:
        lengths: tokens of each row.
        steps: optimizer steps.
        batch_rows: rows of an optimizer step.
        seed: seed of the shuffles.
        pool_batches: batches that are sorted by length together.

    Returns:
        `steps * batch_rows` row numbers; within a batch, longest first, so that its micro-batches are of like length
        and the largest one comes first.
    """
    assert lengths, "there is nothing to read"
    random = Random(seed)
    order: list[int] = []
    waiting: list[int] = []
    while len(order) < steps * batch_rows:
        fresh = list(range(len(lengths)))
        random.shuffle(fresh)
        if waiting:
            missing = batch_rows - len(waiting)
            waiting, fresh = waiting + fresh[:missing], fresh[missing:]
            if len(waiting) < batch_rows:
                continue
            order += sorted(waiting, key=lambda row: -lengths[row])
        whole = len(fresh) - len(fresh) % batch_rows
        batches = _batches_of_like_length(fresh[:whole], lengths, batch_rows, pool_batches)
        waiting = fresh[whole:]
        random.shuffle(batches)
        order += [row for batch in batches for row in batch]
    return order[: steps * batch_rows]


def _batches_of_like_length(
    rows: Sequence[int], lengths: Sequence[int], batch_rows: int, pool_batches: int
) -> list[list[int]]:
    pools = _cut(rows, pool_batches * batch_rows)
    ordered = [sorted(pool, key=lambda row: -lengths[row]) for pool in pools]
    return [batch for pool in ordered for batch in _cut(pool, batch_rows)]


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
