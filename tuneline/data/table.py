"""The rows of a data set between reading and rendering: text on disk, keys in memory.

5 million rows take 0.2 GB of memory; an example is read again by its number.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.data.cleaning.near_duplicates import PERMUTATIONS
from tuneline.data.converting import EXAMPLES_SCHEMA, Columns, Converted
from tuneline.data.workers import CHUNK_ROWS


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
        ids: list[str] = self._read().column("row_id").take(pa.array(rows)).to_pylist()
        return ids

    def chunks(self, rows: NDArray[np.int64]) -> Iterator[list[str]]:
        """Yield the examples of some rows, as JSON, in that order."""
        texts = self._read().column("example")
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            span = texts.slice(part[0], part[-1] - part[0] + 1)  # rows are in rising order: never look farther
            yield (span if len(span) == len(part) else span.take(pa.array(part - part[0]))).to_pylist()

    def signatures(self) -> NDArray[np.uint32]:
        """MinHash signatures of all rows, mapped from disk: shape (rows, permutations)."""
        if len(self) == 0:
            return np.empty((0, PERMUTATIONS), dtype=np.uint32)
        return np.memmap(_signatures(self.path), dtype=np.uint32, mode="r", shape=(len(self), PERMUTATIONS))

    def _read(self) -> pa.Table:
        with pa.memory_map(str(self.path)) as mapped:
            return pa.ipc.open_file(mapped).read_all()


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


def _signatures(path: Path) -> Path:
    return path.with_suffix(".signatures")
