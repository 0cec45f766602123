"""What the steps of one prepare stage share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.jobs import ProgressEvent, Reporter
from tuneline.data.ledger import Ledger, Tally
from tuneline.data.workers import Workers

SHOWN_ROWS = 5
"""Rows that an error names; the rest are counted."""


@dataclass(frozen=True)
class Stage:
    """The config, the account, the workers, and a folder for what is not kept."""

    spec: DataSpec
    ledger: Ledger
    workers: Workers
    report: Reporter
    folder: Path

    def progress(self, done: int, planned: int, note: str) -> None:
        """Say how far a step is; `planned` is 0 while nobody knows."""
        self.report(ProgressEvent(done=done, planned=planned, unit="rows", note=note))


def problems_of(what: str, key: str, tally: Tally, reasons: Sequence[str], fix: str) -> list[Problem]:
    """Say that rows with one of these reasons are too many, after naming the first of them."""
    named = [name for reason in reasons for name in tally.examples.get(reason, ())]
    more = sum(tally.rows.get(reason, 0) for reason in reasons) - len(named[:SHOWN_ROWS])
    problems = [Problem(name) for name in named[:SHOWN_ROWS]]
    if more > 0:
        problems.append(Problem(f"and {more:,} more rows like these"))
    return [*problems, Problem(what, key, fix)]


def refusal(what: str, key: str, tally: Tally, reasons: Sequence[str], fix: str) -> UserError:
    """Refuse to go on for rows with one of these reasons."""
    return UserError(problems_of(what, key, tally, reasons, fix))


def spoken(data_set: str) -> str:
    """Write a data set's name for people."""
    return data_set.replace("_", " ")
