"""The rows of a data set between reading and rendering: text on disk, keys in memory.

The keys of 5 million rows take 0.1 GB; an example is read again by its number. Files are read, not mapped: pages of a
mapped file would count as memory, and there are gigabytes of them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.data.cleaning.near_duplicates import PERMUTATIONS
from tuneline.data.converting import EXAMPLES_SCHEMA, Columns, Converted
from tuneline.data.workers import CHUNK_ROWS

FIRST_ROWS = 100_000
"""Room of a column at first; it doubles when it is full."""
COPIED_AT_ONCE = 100_000
"""Rows whose signatures are copied together: 51 MB."""


@dataclass(frozen=True)
class Part:
    """Some rows of a table, for whoever works on them: a worker reads them from the file itself."""

    path: Path
    first_batch: int
    """Record batch of the file that holds the first row."""
    starts: NDArray[np.int64]
    """Number of the first row of this batch and each one after it, and of the row after the last one."""
    rows: NDArray[np.int64]
    """Numbers of the rows, in rising order."""

    def examples(self) -> list[str]:
        """The rows' examples, as JSON."""
        return self._read("example")

    def texts(self) -> list[str]:
        """All the words of each row."""
        return self._read("text")

    def names(self) -> list[str]:
        """The rows' ids."""
        return self._read("row_id")

    def _read(self, column: str) -> list[str]:
        """Read a column a batch at a time: rows far apart would otherwise hold all of the file between them."""
        reader = _open(self.path, column)
        values: list[str] = []
        borders = np.searchsorted(self.rows, self.starts)
        for number, (low, high) in enumerate(pairwise(borders.tolist())):
            if low == high:
                continue
            batch = reader.get_batch(self.first_batch + number).column(0)
            whole = high - low == len(batch)
            values += (batch if whole else batch.take(pa.array(self.rows[low:high] - self.starts[number]))).to_pylist()
        return values


@dataclass(frozen=True)
class RowTable:
    """Rows by number; `sources` is the number of each row's source."""

    path: Path
    columns: Columns
    sources: NDArray[np.int16]
    kinds: Counter[str]
    batch_starts: NDArray[np.int64]
    """Number of the first row of each record batch, and after them the number of rows."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.sources)

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Row ids of some rows, in any order, the same row as often as it is asked for."""
        rising, places = np.unique(rows, return_inverse=True)
        found = [name for part in self.parts(rising) for name in part.names()]
        return [found[place] for place in places.tolist()]

    def parts(self, rows: NDArray[np.int64]) -> Iterator[Part]:
        """Cut rows, which are in rising order, into parts for the workers."""
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS]
            first, last = np.searchsorted(self.batch_starts, [chunk[0], chunk[-1]], side="right") - 1
            yield Part(self.path, first, self.batch_starts[first : last + 2], chunk)

    def signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """MinHash signatures of some rows, mapped from disk: shape (rows, permutations)."""
        if len(rows) == 0:
            return np.empty((0, PERMUTATIONS), dtype=np.uint32)
        whole = np.memmap(_signatures(self.path), dtype=np.uint32, mode="r", shape=(len(self), PERMUTATIONS))
        if len(rows) == len(self):
            return whole
        chosen = np.memmap(self.path.with_suffix(".chosen"), np.uint32, "w+", shape=(len(rows), PERMUTATIONS))
        for start in range(0, len(rows), COPIED_AT_ONCE):
            chosen[start : start + COPIED_AT_ONCE] = whole[rows[start : start + COPIED_AT_ONCE]]
        return chosen


class TableWriter:
    """Takes in chunks as they are converted."""

    def __init__(self, path: Path) -> None:
        """Write the rows' text to `path`."""
        self._path = path
        self._file = pa.ipc.new_file(str(path), EXAMPLES_SCHEMA)
        self._signatures = _signatures(path).open("wb")
        self._columns = {field.name: _Column() for field in fields(Columns)}
        self._sources = _Column()
        self._starts = [0]
        self._kinds: Counter[str] = Counter()

    def append(self, chunk: Converted, source: int) -> None:
        """Take in a chunk of a source."""
        self._file.write_batch(chunk.examples)
        if chunk.signatures is not None:
            self._signatures.write(chunk.signatures.tobytes())
        for name, column in self._columns.items():
            column.append(getattr(chunk.columns, name))
        rows = len(chunk.columns.characters)
        self._sources.append(np.full(rows, source, dtype=np.int16))
        self._starts.append(self._starts[-1] + rows)
        self._kinds.update(chunk.kinds)

    def finish(self) -> RowTable:
        """Close the files and join the columns."""
        self._file.close()
        self._signatures.close()
        columns: dict[str, Any] = {name: column.finish() for name, column in self._columns.items()}
        sources = self._sources.finish()
        assert sources is not None
        return RowTable(self._path, Columns(**columns), sources, self._kinds, np.array(self._starts))


class _Column:
    """Values that come in pieces, in one array: thousands of small ones would leave as many holes in the heap."""

    def __init__(self) -> None:
        self._values: NDArray[Any] | None = None
        self._count = 0

    def append(self, piece: NDArray[Any] | None) -> None:
        """Copy a piece to the end; a column without values has none in any piece."""
        if piece is None:
            return
        end = self._count + len(piece)
        if self._values is None or end > len(self._values):
            grown = np.empty(max(end, 2 * self._count, FIRST_ROWS), dtype=piece.dtype)
            grown[: self._count] = self._values[: self._count] if self._values is not None else []
            self._values = grown
        self._values[self._count : end] = piece
        self._count = end

    def finish(self) -> NDArray[Any] | None:
        """Give the values; pages behind them were never touched, and so take no memory."""
        return None if self._values is None else self._values[: self._count]


@lru_cache(maxsize=8)
def _open(path: Path, column: str) -> Any:
    """Open a finished file to read one column of it."""
    options = pa.ipc.IpcReadOptions(included_fields=[EXAMPLES_SCHEMA.get_field_index(column)], use_threads=False)
    return pa.ipc.open_file(pa.OSFile(str(path)), options=options)


def _signatures(path: Path) -> Path:
    return path.with_suffix(".signatures")
