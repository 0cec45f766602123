"""Rows of one source file, whatever its format."""

from collections.abc import Iterable, Iterator
from itertools import chain

from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import TextBlocks
from tuneline.data.sources.csv_rows import read_csv
from tuneline.data.sources.json_array import read_json
from tuneline.data.sources.jsonl import JsonLines, read_jsonl
from tuneline.data.sources.resolve import SourceFile
from tuneline.data.workers import CHUNK_ROWS, chunked

DELIMITERS = {"csv": ",", "tsv": "\t"}


Chunk = JsonLines | list[SourceRow | UnreadableRow]
"""Rows that are worked on together."""


def read_chunks(file: SourceFile) -> Iterator[Chunk]:
    """Read a file's rows in order, in chunks; a row that is none says why and costs no other.

    A row is named `path:line`, by the line on which it starts; `path#index`, from 0, for parquet, arrow and hub.
    Values are those of the format: strings for csv and tsv.

    Raises:
        UserError: the file as a whole cannot be read (empty, UTF-16, two columns of one name).
    """
    if file.kind == "hub":
        from tuneline.data.sources.hub import read_hub  # imports datasets

        return chunked(read_hub(file))
    if file.kind in ("parquet", "arrow"):
        from tuneline.data.sources.columnar import read_arrow, read_parquet  # imports pyarrow

        return chunked(read_parquet(file) if file.kind == "parquet" else read_arrow(file))
    return _read_text(file)


def rows_of(chunk: Chunk) -> Iterable[SourceRow | UnreadableRow]:
    """Give a chunk's rows."""
    return chunk.rows() if isinstance(chunk, JsonLines) else chunk


def read_rows(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read a file's rows in order, one at a time, as `read_chunks` does."""
    return chain.from_iterable(map(rows_of, read_chunks(file)))


def _read_text(file: SourceFile) -> Iterator[Chunk]:
    blocks = TextBlocks(file)
    if file.kind == "jsonl":
        yield from read_jsonl(blocks, CHUNK_ROWS)
    else:
        yield from chunked(read_json(blocks) if file.kind == "json" else read_csv(blocks, DELIMITERS[file.kind]))
    if blocks.torn:
        why = f"the .{file.compression} file is torn in this line, what follows is lost: {blocks.torn}"
        yield [UnreadableRow(f"{file.label}:{blocks.lines + 1}", why)]
