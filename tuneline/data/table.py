"""The rows of a data set between reading and rendering: text on disk, keys in memory.

5 million rows take 0.2 GB of memory; an example is read again by its number.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.data.cleaning.near_duplicates import PERMUTATIONS
from tuneline.data.converting import EXAMPLES_SCHEMA, Columns, Converted
from tuneline.data.workers import CHUNK_ROWS


@dataclass(frozen=True)
class Part:
    """Some rows of a table, for whoever works on them: a worker reads them from the file itself."""

    path: Path
    rows: NDArray[np.int64]
    """In rising order."""

    def examples(self) -> list[str]:
        """The rows' examples, as JSON."""
        return self._read("example")

    def texts(self) -> list[str]:
        """All the words of each row."""
        return self._read("text")

    def _read(self, column: str) -> list[str]:
        first, last = self.rows[0], self.rows[-1]
        span = _open(self.path).column(column).slice(first, last - first + 1)  # the others are not looked at
        texts: list[str] = (span if len(span) == len(self.rows) else span.take(pa.array(self.rows - first))).to_pylist()
        return texts


@dataclass(frozen=True)
class RowTable:
    """Rows by number; `sources` is the number of each row's source."""

    path: Path
    columns: Columns
    sources: NDArray[np.int16]
    kinds: Counter[str]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.sources)

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Row ids of some rows."""
        ids: list[str] = _open(self.path).column("row_id").take(pa.array(rows)).to_pylist()
        return ids

    def parts(self, rows: NDArray[np.int64]) -> Iterator[Part]:
        """Cut rows into parts for the workers."""
        return (Part(self.path, rows[start : start + CHUNK_ROWS]) for start in range(0, len(rows), CHUNK_ROWS))

    def signatures(self) -> NDArray[np.uint32]:
        """MinHash signatures of all rows, mapped from disk: shape (rows, permutations)."""
        if len(self) == 0:
            return np.empty((0, PERMUTATIONS), dtype=np.uint32)
        return np.memmap(_signatures(self.path), dtype=np.uint32, mode="r", shape=(len(self), PERMUTATIONS))


class TableWriter:
    """Takes in chunks as they are converted."""

    def __init__(self, path: Path) -> None:
        """Write the rows' text to `path`."""
        self._path = path
        self._file = pa.ipc.new_file(str(path), EXAMPLES_SCHEMA)
        self._signatures = _signatures(path).open("wb")
        self._columns: list[Columns] = []
        self._sources: list[NDArray[np.int16]] = []
        self._kinds: Counter[str] = Counter()

    def append(self, chunk: Converted, source: int) -> None:
        """Take in a chunk of a source."""
        self._file.write_batch(chunk.examples)
        if chunk.signatures is not None:
            self._signatures.write(chunk.signatures.tobytes())
        self._columns.append(chunk.columns)
        self._sources.append(np.full(len(chunk.columns.characters), source, dtype=np.int16))
        self._kinds.update(chunk.kinds)

    def finish(self) -> RowTable:
        """Close the files and join the columns."""
        self._file.close()
        self._signatures.close()
        joined = {
            field.name: np.concatenate([getattr(columns, field.name) for columns in self._columns])
            for field in fields(Columns)
        }
        return RowTable(self._path, Columns(**joined), np.concatenate(self._sources), self._kinds)


@lru_cache(maxsize=4)
def _open(path: Path) -> pa.Table:
    """Map a finished file into memory."""
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def _signatures(path: Path) -> Path:
    return path.with_suffix(".signatures")
