"""Where every row went: written down as it happens, so that a receipt can name rows and a file can name them all."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneline.contracts.receipt import SHOWN_EXAMPLES, Reason, SourceLine, StepLine


@dataclass(frozen=True, slots=True)
class Loss:
    """A row that a step drops or remarks on; `note` says what is particular to it."""

    row_id: str
    reason: str
    note: str = ""

    @property
    def named(self) -> str:
        """The row with its note, for people."""
        return f"{self.row_id}: {self.note}" if self.note else self.row_id


@dataclass
class Tally:
    """Rows by reason, with the first of each by name."""

    rows: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, losses: Iterable[Loss]) -> None:
        """Count rows."""
        for loss in losses:
            self.rows[loss.reason] = self.rows.get(loss.reason, 0) + 1
            shown = self.examples.setdefault(loss.reason, [])
            if len(shown) < SHOWN_EXAMPLES:
                shown.append(loss.named)

    @property
    def total(self) -> int:
        """Rows of all reasons."""
        return sum(self.rows.values())

    def reason(self, reason: str) -> Reason:
        """Say how many rows have a reason, if any."""
        return Reason(reason=reason, rows=self.rows.get(reason, 0), examples=tuple(self.examples.get(reason, ())))

    def reasons(self) -> tuple[Reason, ...]:
        """List the reasons, the most frequent first."""
        return tuple(self.reason(reason) for reason in sorted(self.rows, key=lambda reason: -self.rows[reason]))


@dataclass
class Step:
    """A step under way: what it dropped and remarked on so far."""

    data_set: str
    name: str
    rows_in: int
    rows_out: int = 0
    characters_out: int = 0
    tokens_out: int | None = None
    """None before rendering: told from characters when the receipt is written."""
    dropped: Tally = field(default_factory=Tally)
    noted: Tally = field(default_factory=Tally)


class Ledger:
    """The steps in their order; every dropped row also goes to a file at once."""

    def __init__(self, dropped: Path) -> None:
        """Write the dropped rows to `dropped`, a line of JSON each."""
        self.sources: list[SourceLine] = []
        self.steps: list[Step] = []
        self._stream = dropped.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        """Use as a context that closes the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._stream.close()

    def open(self, data_set: str, name: str, rows_in: int) -> Step:
        """Begin a step."""
        step = Step(data_set, name, rows_in)
        self.steps.append(step)
        return step

    def drop(self, step: Step, losses: Iterable[Loss]) -> None:
        """Note rows that a step drops."""
        for loss in losses:
            step.dropped.add([loss])
            line = {
                "data_set": step.data_set,
                "row_id": loss.row_id,
                "step": step.name,
                "reason": loss.reason,
                "note": loss.note,
            }
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def lines(self, tokens_per_character: float) -> tuple[StepLine, ...]:
        """Write the steps for the receipt."""
        return tuple(
            StepLine(
                data_set=step.data_set,
                step=step.name,
                rows_in=step.rows_in,
                rows_out=step.rows_out,
                tokens_out=_tokens(step, tokens_per_character),
                tokens_estimated=step.tokens_out is None,
                dropped=step.dropped.reasons(),
                noted=step.noted.reasons(),
            )
            for step in self.steps
        )


def _tokens(step: Step, tokens_per_character: float) -> int:
    return step.tokens_out if step.tokens_out is not None else round(step.characters_out * tokens_per_character)
