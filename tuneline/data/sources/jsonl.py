"""JSON lines: each line is parsed by itself, so that a bad one costs no other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import TextBlocks, whole_lines

CHUNK_BYTES: Final = 4 * 2**20
"""Most lines handed on at once, but for a single longer block: a worker holds some ten times as much while it works."""
_NOT_A_NUMBER: Final = re.compile("-?(?:NaN|Infinity)")


@dataclass(frozen=True)
class JsonLines:
    """Whole lines of a file as they are stored, the first of them being line `first`: parsed by who needs the rows."""

    label: str
    first: int
    blocks: tuple[bytes, ...]

    def rows(self) -> Iterator[SourceRow | UnreadableRow]:
        """Read an object a line; blank lines are none, a row is named by its line."""
        loads, label, first = orjson.loads, self.label, self.first
        for block in self.blocks:
            lines = block.split(b"\n")
            for number, line in enumerate(lines, first):
                try:
                    values = loads(line)
                except orjson.JSONDecodeError as error:
                    if line.strip():
                        yield UnreadableRow(f"{label}:{number}", why_not_json(line, error))
                    continue
                if type(values) is dict:
                    yield SourceRow(f"{label}:{number}", values)
                else:
                    yield UnreadableRow(f"{label}:{number}", why_no_object(values))
            first += len(lines) - 1


def read_jsonl(blocks: TextBlocks, most_rows: int) -> Iterator[JsonLines]:
    """Cut a file into runs of lines: as many blocks as reach `most_rows` lines or `CHUNK_BYTES`."""
    first, held, lines = 1, list[bytes](), 0
    for block in whole_lines(blocks):
        held.append(block)
        lines += block.count(b"\n")
        if lines >= most_rows or sum(map(len, held)) >= CHUNK_BYTES:
            yield JsonLines(blocks.label, first, tuple(held))
            first, held, lines = first + lines, [], 0
    if held:
        yield JsonLines(blocks.label, first, tuple(held))


def why_no_object(values: object) -> str:
    """Say what stands where a row should be an object."""
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return f"{names.get(type(values), 'a number')} where an object is needed"


def why_not_json(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """Say why bytes are no JSON, and where in them."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        return f"byte 0x{raw[bad.start]:02x} is not UTF-8 ({_place(raw[: bad.start].decode())})"
    place = _place(text[: error.pos])
    # orjson points into `-Infinity` one character after its sign.
    if found := _NOT_A_NUMBER.match(text, max(error.pos - 1, 0)) or _NOT_A_NUMBER.match(text, error.pos):
        return f"{found[0]} is not JSON ({place})"
    return f"not JSON: {error.msg} ({place})"


def _place(before: str) -> str:
    """Name the place after some text: its column in characters from 1, and its line where that is not the first."""
    column = f"column {len(before) - before.rfind(chr(10))}"
    return f"{column}, {before.count(chr(10))} lines further down" if "\n" in before else column
