"""Parquet and Arrow files: batches to rows, each named by its index."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow
from pyarrow import ipc, parquet

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import on_disk
from tuneline.data.sources.resolve import SourceFile

BATCH_ROWS: Final = 1_000
_UNREADABLE: Final = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
"""What pyarrow raises for bytes that are not what the schema says."""


def read_parquet(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read a Parquet file by batches; a row group that is damaged costs its own rows.

    Raises:
        UserError: not Parquet, or a column's name stands twice.
    """
    with on_disk(file) as path:
        try:
            opened = parquet.ParquetFile(path, buffer_size=2**20)
        except _UNREADABLE as error:
            raise _not_opened("Parquet", file, error) from error
        _check_columns(opened.schema_arrow.names, file)
        first = 0
        for group in range(opened.num_row_groups):
            after = first + opened.metadata.row_group(group).num_rows
            batches = opened.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])
            yield from _rows(batches, file.label, first, f"rows {first} to {after - 1}")
            first = after


def read_arrow(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read an Arrow file, in the file or the stream format; what lies before a tear is read.

    Raises:
        UserError: neither format, or a column's name stands twice.
    """
    with on_disk(file) as path, pyarrow.OSFile(path) as stored:
        try:
            is_file = stored.read(6) == b"ARROW1"
            stored.seek(0)
            opened = ipc.open_file(stored) if is_file else ipc.open_stream(stored)
        except _UNREADABLE as error:
            raise _not_opened("Arrow", file, error) from error
        _check_columns(opened.schema.names, file)
        batches = map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened
        yield from _rows(batches, file.label, 0, "the rest of the file")


def rows_of(batch: Any, label: str, first: int) -> Iterator[SourceRow | UnreadableRow]:
    """Turn a batch or table into rows; one with a value that Python cannot hold costs itself."""
    try:
        values = batch.to_pylist()
    except _UNREADABLE as error:
        if batch.num_rows == 1:
            yield UnreadableRow(f"{label}#{first}", _first_line(error))
            return
        for index in range(batch.num_rows):
            yield from rows_of(batch.slice(index, 1), label, first + index)
        return
    for index, row in enumerate(values, first):
        yield SourceRow(f"{label}#{index}", row)


def _rows(batches: Iterable[Any], label: str, first: int, lost: str) -> Iterator[SourceRow | UnreadableRow]:
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from rows_of(batch.slice(start, BATCH_ROWS), label, first + start)
            first += batch.num_rows
    except _UNREADABLE as error:
        yield UnreadableRow(f"{label}#{first}", f"damaged from here on ({lost}): {_first_line(error)}")


def _check_columns(names: list[str], file: SourceFile) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        named = ", ".join(f"`{name}`" for name in twice)
        raise UserError.of(f"two columns have the same name: {named}", file.label, "rename one")


def _not_opened(kind: str, file: SourceFile, error: Exception) -> UserError:
    return UserError.of(f"not {kind}: {_first_line(error)}", file.label, "write the file again")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
