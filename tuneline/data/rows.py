"""Rows as they are read, before anyone knows what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as it was read: `row_id` is `file:line` (`file#row` where the format has no lines)."""

    row_id: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A place in a file where a row should be, and why it is none."""

    row_id: str
    why: str


class UnusableRow(ValueError):
    """A row that is no example: the message says why."""
