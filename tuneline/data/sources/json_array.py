"""A .json file that holds an array of objects (or objects one after the other), read without holding the file."""

import json
import re
from collections.abc import Iterator
from typing import Final

import orjson

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import ROW_BYTES_LIMIT, TextBlocks
from tuneline.data.sources.jsonl import why_no_object, why_not_json

# No string of JSON holds a line end: one that reaches it was not closed, and the rest of the file is safe from it.
_STRING: Final = rb'"(?:[^"\\\n]++|\\[^\n])*+'
_BETWEEN_BRACKETS: Final = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb'")*+')
_OPEN_STRING: Final = re.compile(_STRING)
_SEPARATORS: Final = re.compile(rb"[\s,]*")
_SCALAR: Final = re.compile(rb'(?:[^\s,\]"]++|' + _STRING + rb'")++|.', re.DOTALL)
_CLOSING: Final = {b"{": b"}", b"[": b"]"}


def read_json(blocks: TextBlocks) -> Iterator[SourceRow | UnreadableRow]:
    """Read the objects of an array; a row is named by the line on which it starts.

    An object that is not closed costs itself: reading goes on at the next line that starts one, no deeper than it.

    Raises:
        UserError: neither an array nor objects, or one object alone.
    """
    text = _Window(blocks)
    is_array = _enter(text)
    alone = not is_array
    while (sign := text.skip_separators()) and not (is_array and sign == b"]"):
        line, raw = text.line, text.take_element()
        if raw is None:
            text.skip_to_next_object()
        if alone and not text.skip_separators():
            raise _one_object(raw, blocks.label)
        alone = False
        yield _row(raw, blocks.label, line)
    if is_array:
        yield from _ending(text, sign, blocks)


def _enter(text: "_Window") -> bool:
    """Step into the array and return True, or return False before the first of several objects."""
    first = text.skip_separators()
    if first == b"[":
        text.take(text.position + 1)
        text.indentation = 1
    elif first != b"{":
        what = f"a JSON file starts with an array or an object, not with {first.decode('latin-1')!r}"
        raise UserError.of(what, f"{text.label}:{text.line}", "write an array of objects, or a .jsonl file")
    return first == b"["


def _row(raw: bytes | None, label: str, line: int) -> SourceRow | UnreadableRow:
    if raw is None:
        return UnreadableRow(f"{label}:{line}", "the object that starts here is not closed, or a string in it is not")
    try:
        values = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return UnreadableRow(f"{label}:{line}", why_not_json(raw, error))
    if not isinstance(values, dict):
        return UnreadableRow(f"{label}:{line}", why_no_object(values))
    return SourceRow(f"{label}:{line}", values)


def _ending(text: "_Window", last: bytes, blocks: TextBlocks) -> Iterator[UnreadableRow]:
    """Say so where an array is not closed, or goes on after its end; a tear is told apart."""
    if last == b"]":
        text.take(text.position + 1)
        if text.skip_separators():
            yield UnreadableRow(f"{text.label}:{text.line}", "something follows the array; it is not read")
    elif not blocks.torn:
        yield UnreadableRow(f"{text.label}:{text.line}", "the file ends before its array is closed")


def _one_object(raw: bytes | None, label: str) -> UserError:
    try:
        values = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        return UserError.of(why_not_json(raw or b"", error), label, "write an array of objects")
    lists = [key for key, value in values.items() if isinstance(value, list)]
    fix = (
        f"put the array under {json.dumps(lists[0])} into a file of its own" if lists else "put it into an array: [...]"
    )
    return UserError.of("one object at the top where an array of objects is needed", label, fix)


class _Window:
    """The part of the text that is looked at; it slides over the blocks, and `line` is that of `position`."""

    def __init__(self, blocks: TextBlocks) -> None:
        self.label = blocks.label
        self.position = 0
        self.line = 1
        self._blocks = iter(blocks)
        self._data = b""
        self.indentation = 0
        """White space before the first element of the line; 1 in the line of the array's bracket."""

    def skip_separators(self) -> bytes:
        """Go to the next byte that is no white space or comma, and return it; empty at the end."""
        while True:
            match = _SEPARATORS.match(self._data, self.position)
            assert match is not None, "the pattern matches nothing too"
            skipped = self.take(match.end())
            if b"\n" in skipped:
                self.indentation = len(skipped) - skipped.rfind(b"\n") - 1
            if self.position < len(self._data):
                return self._data[self.position : self.position + 1]
            if not self._grow():
                return b""

    def take(self, end: int) -> bytes:
        """Return the bytes up to `end` and step behind them."""
        taken = self._data[self.position : end]
        self.line += taken.count(b"\n")
        self.position = end
        return taken

    def take_element(self) -> bytes | None:
        """Return the element at `position` and step behind it; None where its end cannot be told."""
        opening = self._data[self.position : self.position + 1]
        end = self._end_of_brackets(opening) if opening in _CLOSING else self._end_of_scalar()
        return None if end is None else self.take(end)

    def skip_to_next_object(self) -> None:
        """Go to the next line that starts an object, no deeper than the one that broke; to the end without one."""
        pattern = re.compile(rb"\n[ \t]{0,%d}(?=\{)" % self.indentation)
        while (match := pattern.search(self._data, self.position + 1)) is None:
            # The last line stays: its line feed may be followed by an object in the next block.
            self.take(max(self._data.rfind(b"\n"), self.position))
            if not self._grow():
                self.take(len(self._data))
                return
        self.take(match.end())

    def _end_of_brackets(self, opening: bytes) -> int | None:
        depth, cursor = 0, self.position
        while True:
            match = _BETWEEN_BRACKETS.match(self._data, cursor)
            assert match is not None, "the pattern matches nothing too"
            cursor = match.end()
            sign = self._data[cursor : cursor + 1]
            if sign and sign in b"{[":
                depth, cursor = depth + 1, cursor + 1
            elif sign and sign in b"}]":
                depth, cursor = depth - 1, cursor + 1
                if depth == 0:
                    return cursor if sign == _CLOSING[opening] else None
            elif self._string_breaks_off(cursor) or len(self._data) - self.position > ROW_BYTES_LIMIT:
                return None
            else:
                # What is before the cursor was looked at; the window's start moves to position 0 when it grows.
                cursor -= self.position
                if not self._grow():
                    return None

    def _end_of_scalar(self) -> int:
        while True:
            match = _SCALAR.match(self._data, self.position)
            assert match is not None, "the pattern matches any byte"
            if match.end() < len(self._data) or len(match[0]) > ROW_BYTES_LIMIT or not self._grow():
                return max(match.end(), self.position + 1)

    def _string_breaks_off(self, cursor: int) -> bool:
        """Whether a string that starts at the cursor meets a line end, rather than the end of what was read."""
        match = _OPEN_STRING.match(self._data, cursor)
        if match is None:
            return False
        rest = self._data[match.end() : match.end() + 2]
        return rest.startswith(b"\n") or rest == b"\\\n"

    def _grow(self) -> bool:
        """Drop what is behind `position` and read as much again as is left; False at the end."""
        left = self._data[self.position :]
        fresh: list[bytes] = []
        size = 0
        for block in self._blocks:
            fresh.append(block)
            size += len(block)
            # Twice as much each time, so that a row of 10 MB is not copied once for each block.
            if size >= len(left):
                break
        self._data = b"".join((left, *fresh))
        self.position = 0
        return bool(size)
