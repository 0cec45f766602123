"""CSV and TSV: quotes, line ends inside quotes, and the rows that lost their shape."""

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import ROW_BYTES_LIMIT, TextBlocks, whole_lines

_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
"""How `surrogateescape` spells the bytes 0x80 to 0xff that are no UTF-8."""
_OPEN_AT_END: Final = "unexpected end of data"
"""What the parser says when the lines end inside quotes."""


def read_csv(blocks: TextBlocks, delimiter: str) -> Iterator[SourceRow | UnreadableRow]:
    """Read a header and its rows; a row is named by the line on which it starts, and blank lines are none.

    After a quote that is not closed, reading goes on at the next line, so that it costs one row.

    Raises:
        UserError: a header that cannot be read, or names a column twice.
    """
    csv.field_size_limit(sys.maxsize)  # the limit is ours: ROW_BYTES_LIMIT
    table = _Table(blocks.label, delimiter)
    carried_bytes = fresh_bytes = 0
    for block in whole_lines(blocks):
        table.add(block)
        fresh_bytes += len(block)
        # A long row is parsed anew only when its bytes have doubled: 64 MiB cost 128, not 2,048.
        if fresh_bytes < carried_bytes:
            continue
        yield from table.rows(final=False)
        carried_bytes, fresh_bytes = table.pending_bytes(), 0
    yield from table.rows(final=blocks.torn is None)
    yield from table.cut_off()


class _Table:
    """Lines that wait to become rows, with the header once it is known."""

    def __init__(self, label: str, delimiter: str) -> None:
        self._label, self._delimiter = label, delimiter
        self._header: Sequence[str] = ()
        self._lines: list[str] = []
        self._first = 1
        self._has_bad_bytes = False

    def add(self, block: bytes) -> None:
        """Append the lines of a block, decoded."""
        lines = io.BytesIO(block).readlines()
        try:
            self._lines += [line.decode() for line in lines]
        except UnicodeDecodeError:
            self._lines += [line.decode("utf-8", "surrogateescape") for line in lines]
            self._has_bad_bytes = True

    def pending_bytes(self) -> int:
        """Return the size of the lines that wait, about."""
        return sum(map(len, self._lines))

    def rows(self, *, final: bool) -> Iterator[SourceRow | UnreadableRow]:
        """Yield the rows of the lines so far; lines of one that is not whole stay, unless they are the last."""
        label, header, line = self._label, self._header, self._first
        after = line + len(self._lines)
        while line < after:
            plain_width = -1 if self._has_bad_bytes or not header else len(header)
            start = line
            reader = csv.reader(islice(self._lines, start - self._first, None), delimiter=self._delimiter, strict=True)
            try:
                for cells in reader:
                    if len(cells) == plain_width:
                        yield SourceRow(f"{label}:{line}", dict(zip(header, cells, strict=False)))
                    elif not header:
                        self._header = header = _checked_header(cells, f"{label}:{line}")
                        plain_width = -1 if self._has_bad_bytes or not header else len(header)
                    elif len(cells) > 1 or any(map(str.strip, cells)):
                        yield self._row(cells, line, start + reader.line_num - 1)
                    line = start + reader.line_num
            except csv.Error as error:
                is_open = str(error) == _OPEN_AT_END
                if is_open and not final and self._may_close(line):
                    break
                yield self._broken(line, str(error), is_open=is_open)
                line += 1
        del self._lines[: line - self._first]
        self._first = line
        self._has_bad_bytes = any(map(_NOT_UTF8.search, self._lines))

    def _may_close(self, line: int) -> bool:
        return sum(map(len, islice(self._lines, line - self._first, None))) <= ROW_BYTES_LIMIT

    def cut_off(self) -> Iterator[UnreadableRow]:
        """Name the row that a tear cut off inside quotes; without a tear no line is left."""
        if self._lines:
            yield UnreadableRow(f"{self._label}:{self._first}", "the file is torn in the row that starts here")

    def _row(self, cells: Sequence[str], line: int, last_line: int) -> SourceRow | UnreadableRow:
        row_id = f"{self._label}:{line}"
        if bad := _NOT_UTF8.search("".join(cells)):
            return UnreadableRow(row_id, f"byte 0x{ord(bad[0]) - 0xDC00:02x} is not UTF-8")
        if len(cells) != len(self._header):
            span = f" (lines {line} to {last_line})" if last_line > line else ""
            return UnreadableRow(row_id, f"{len(cells)} cells where the header has {len(self._header)}{span}")
        return SourceRow(row_id, dict(zip(self._header, cells, strict=True)))

    def _broken(self, line: int, error: str, *, is_open: bool) -> UnreadableRow:
        row_id = f"{self._label}:{line}"
        if is_open:
            why = f"a quote opened on line {line} is never closed"
        elif "new-line" in error:
            why = "a carriage return without a line feed stands outside quotes"
        else:
            why = (
                f"a quote opened on line {line} is not closed where its cell ends, or one inside a cell is not doubled"
            )
        if not self._header:
            raise UserError.of(f"the header cannot be read: {why}", row_id, "save the file as CSV with line feeds")
        return UnreadableRow(row_id, why)


def _checked_header(cells: Sequence[str], where: str) -> Sequence[str]:
    """Return the names of the columns; none where the line is blank."""
    if _NOT_UTF8.search("".join(cells)):
        raise UserError.of("the header is not UTF-8", where, "save as UTF-8 (`iconv -f latin1 -t utf-8` mends most)")
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        named = ", ".join(f"`{name}`" for name in twice)
        raise UserError.of(f"two columns have the same name: {named}", where, "rename one")
    return cells
