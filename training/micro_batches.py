"""How the rows of a rank's optimizer step become micro-batches: as many rows in each as a token budget holds.

A fixed number of rows wastes the budget on short rows; and which rows an optimizer step has must not depend on how
much memory there is. So the trainer's batch is the whole step, and the cut is made here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

MicroBatch = dict[str, Any]


def cut(lengths: Sequence[int], budget_tokens: int, *, joined: bool) -> list[list[int]]:
    """Cut rows into micro-batches of at most so many tokens, padding included; a longer row is alone in its own.

    Args:
        lengths: tokens of each row.
        budget_tokens: of a micro-batch.
        joined: whether rows are put end to end, without padding; else each is padded to the longest.

    Returns:
        Row numbers, each once; the longest row is in the first micro-batch.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = []
    free: list[int] = []
    for row in longest_first:
        fits = (place for place, tokens in enumerate(free) if lengths[row] <= tokens)
        # Joined rows go wherever there is room; padded ones only to the last, whose rows are the most alike.
        place = next(fits, None) if joined else (len(free) - 1 if free and free[-1] > 0 else None)
        if place is None:
            parts.append([row])
            free.append(budget_tokens - lengths[row] if joined else budget_tokens // lengths[row] - 1)
        else:
            parts[place].append(row)
            free[place] -= lengths[row] if joined else 1
    return parts


@dataclass(frozen=True)
class StepCollator:
    """Makes of the rows of an optimizer step its micro-batches."""

    pad_token_id: int
    budget_tokens: int
    joined: bool

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[MicroBatch]:
        """Return for each micro-batch what TRL's collator makes of its rows."""
        collate = DataCollatorForLanguageModeling(self.pad_token_id, padding_free=self.joined)
        parts = self.cut([len(row["input_ids"]) for row in rows])
        return [collate([rows[number] for number in part]) for part in parts]

    def cut(self, lengths: Sequence[int]) -> list[list[int]]:
        """Say which rows go together, by their numbers."""
        return cut(lengths, self.budget_tokens, joined=self.joined)
