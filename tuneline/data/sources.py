"""Files and Hub datasets to rows, each with a name that a person can find it by (`file:line`)."""

import codecs
import csv
import difflib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.errors import UserError

HUB_PREFIX = "hub:"
READABLE = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read: `row_id` is `file:line` (`file#row` where the format has no lines)."""

    row_id: str
    values: Mapping[str, object]


def read_rows(source: str, key: str, *, split: str = "train", revision: str | None = None) -> list[SourceRow]:
    """Read every row of a source.

    Args:
        source: path of a .csv, .jsonl or .parquet file, or `hub:owner/name`.
        key: the config key that names it, for error messages.
        split: split of a Hub dataset.
        revision: commit of a Hub dataset.

    Raises:
        UserError: a missing, empty, unreadable or badly encoded source.
    """
    if source.startswith(HUB_PREFIX):
        rows = _read_hub(source.removeprefix(HUB_PREFIX), split, revision)
    else:
        rows = list(_read_file(check_file(source, key)))
    if not rows:
        raise UserError.of("the file has no rows", f"{key} {source}", "name a file with at least one row")
    return rows


def check_file(source: str, key: str) -> Path:
    """Return the path of a readable source file, or say what is wrong with it."""
    path = Path(source)
    where = f"{key} {source}"
    if path.suffix not in READABLE:
        raise UserError.of(f"`{path.suffix}` is not a format that is read", where, f"one of {', '.join(READABLE)}")
    if not path.is_file():
        raise UserError.of("no such file", where, f"looked from {Path.cwd()}")
    if path.stat().st_size == 0:
        raise UserError.of("the file is empty", where, "name a file with at least one row")
    return path


def require_columns(rows: list[SourceRow], columns: Mapping[str, str], where: str) -> None:
    """Check that the first row has the columns; `columns` maps a config key to the column that it names.

    Raises:
        UserError: naming each missing column, the nearest one and all that are there.
    """
    present = list(rows[0].values)
    for key, column in columns.items():
        if column not in present:
            close = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            raise UserError.of(
                f"no column `{column}` (named by {key})", where, f"{hint}the columns are {', '.join(present)}"
            )


def _read_file(path: Path) -> Iterator[SourceRow]:
    match path.suffix:
        case ".csv":
            return _read_csv(path)
        case ".jsonl":
            return _read_jsonl(path)
        case _:
            return _read_parquet(path)


def _read_csv(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_decode(path), newline=""))
    header = next(reader)
    if len(set(header)) != len(header):
        raise UserError.of(f"two columns have the same name: {', '.join(header)}", f"{path}:1", "rename one")
    first_line = reader.line_num + 1
    for cells in reader:
        row_id, first_line = f"{path}:{first_line}", reader.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError.of(
                f"{len(cells)} cells where the header has {len(header)}", row_id, "quote cells that hold commas"
            )
        yield SourceRow(row_id, dict(zip(header, cells, strict=True)))


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        row_id = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError.of(f"not JSON: {error.msg} at column {error.colno}", row_id, "one object a line") from None
        if not isinstance(values, dict):
            raise UserError.of(f"a {type(values).__name__} where an object is needed", row_id, "one object a line")
        yield SourceRow(row_id, values)


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError.of(f"not Parquet: {error}", str(path), "write the file again") from None
    for number, values in enumerate(table.to_pylist()):
        yield SourceRow(f"{path}#{number}", values)


def _read_hub(name: str, split: str, revision: str | None) -> list[SourceRow]:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError.of(
            f"the Hub dataset cannot be had: {type(error).__name__}: {str(error).splitlines()[0]}",
            f"hub:{name}",
            "check name, data.hub_split and data.hub_revision, or download it and name the file",
        ) from error
    return [SourceRow(f"{HUB_PREFIX}{name}#{number}", row) for number, row in enumerate(dataset)]


def _decode(path: Path) -> str:
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fix = "save the file as UTF-8 (`iconv -f latin1 -t utf-8` mends most)"
        raise UserError.of(f"byte 0x{raw[error.start]:02x} is not UTF-8", f"{path}:{line}", fix) from None
