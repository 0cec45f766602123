"""Preference rows as TRL's trainers take them: padded, with our own masks; no template, no cut, no token of TRL's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from tuneline.contracts.records import IGNORED_LABEL

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PairCollator:
    """Pairs to one batch: the chosen conversations, then the rejected ones in the same order."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `completion_mask` (1: learned), shape (2 * rows, tokens)."""
        ids = [row[name] for name in ("input_ids", "rejected_input_ids") for row in rows]
        labels = [row[name] for name in ("labels", "rejected_labels") for row in rows]
        return _padded(ids, labels, self.pad_token_id)


@dataclass(frozen=True)
class UnpairedCollator:
    """Labelled answers to a batch, and under `KL_` each prompt with an answer to another one."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return what `PairCollator` does, twice, and `label` (is the answer wanted?) of shape (rows,)."""
        matched = _padded([row["input_ids"] for row in rows], [row["labels"] for row in rows], self.pad_token_id)
        mismatched = _padded(
            [row["mismatched_input_ids"] for row in rows], [row["mismatched_labels"] for row in rows], self.pad_token_id
        )
        wanted = torch.tensor([row["desirable"] for row in rows])
        return {**matched, **{f"KL_{name}": tensor for name, tensor in mismatched.items()}, "label": wanted}


def with_partners(stored: Any, order: Sequence[int], batch_rows: int) -> Any:
    """Lay rows out in reading order, each with its prompt before the answer of its neighbour in the optimizer step.

    KTO estimates on them how far the model has moved. Who is whose neighbour is settled here, for the whole step, so
    that neither the micro-batch nor the number of ranks changes it.

    Args:
        stored: `datasets.Dataset` of the prepared rows.
        order: row numbers, `batch_rows` of them for each optimizer step.
        batch_rows: rows of an optimizer step, 2 at least.

    Returns:
        A `datasets.Dataset` of two row numbers, which gives the rows' columns, `mismatched_input_ids` and
        `mismatched_labels`; these are cut to the longest row, for which memory was planned.
    """
    longest = max(len(ids) for ids in stored["input_ids"])
    starts = [place - place % batch_rows for place in range(len(order))]
    partners = [order[start + (place - start - 1) % batch_rows] for place, start in enumerate(starts)]

    def fetch(numbers: Mapping[str, list[int]]) -> dict[str, Any]:
        rows, others = stored[numbers["row"]], stored[numbers["partner"]]
        answers = list(zip(_answer_starts(rows["labels"]), _answer_starts(others["labels"]), strict=True))

        def swapped(column: str) -> list[list[int]]:
            pairs = zip(rows[column], others[column], answers, strict=True)
            return [[*own[:start], *other[other_start:]][:longest] for own, other, (start, other_start) in pairs]

        return {**rows, **{f"mismatched_{column}": swapped(column) for column in ("input_ids", "labels")}}

    return Dataset.from_dict({"row": list(order), "partner": partners}).with_transform(fetch)


def _answer_starts(rows: Sequence[Sequence[int]]) -> list[int]:
    return [next(place for place, label in enumerate(labels) if label != IGNORED_LABEL) for labels in rows]


def _padded(ids: Sequence[list[int]], labels: Sequence[list[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right, where causal attention never looks from a token of the row."""
    learned = [torch.tensor(row) != IGNORED_LABEL for row in labels]
    ones = [torch.ones(len(row), dtype=torch.long) for row in ids]
    return {
        "input_ids": pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(ones, batch_first=True),
        "completion_mask": pad_sequence([mask.long() for mask in learned], batch_first=True),
    }
