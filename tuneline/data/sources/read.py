"""Rows of one source file, whatever its format."""

from collections.abc import Iterator

from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import TextBlocks
from tuneline.data.sources.csv_rows import read_csv
from tuneline.data.sources.json_array import read_json
from tuneline.data.sources.jsonl import read_jsonl
from tuneline.data.sources.resolve import SourceFile


def read_rows(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    """Read a file's rows in order, one at a time; a row that is none says why and costs no other.

    A row is named `path:line`, by the line on which it starts; `path#index`, from 0, for parquet, arrow and hub.
    Values are those of the format: strings for csv and tsv.

    Raises:
        UserError: the file as a whole cannot be read (empty, UTF-16, two columns of one name).
    """
    if file.kind == "hub":
        from tuneline.data.sources.hub import read_hub  # imports datasets

        return read_hub(file)
    if file.kind in ("parquet", "arrow"):
        from tuneline.data.sources.columnar import read_arrow, read_parquet  # imports pyarrow

        return read_parquet(file) if file.kind == "parquet" else read_arrow(file)
    return _read_text(file)


def _read_text(file: SourceFile) -> Iterator[SourceRow | UnreadableRow]:
    blocks = TextBlocks(file)
    if file.kind == "json":
        yield from read_json(blocks)
    elif file.kind == "jsonl":
        yield from read_jsonl(blocks)
    else:
        yield from read_csv(blocks, "\t" if file.kind == "tsv" else ",")
    if blocks.torn:
        why = f"the .{file.compression} file is torn in this line, what follows is lost: {blocks.torn}"
        yield UnreadableRow(f"{file.label}:{blocks.lines + 1}", why)
