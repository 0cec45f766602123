"""What holds for any rows: each comes back equal, in order, under the number of its line."""

import csv
import gzip
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources import blocks
from tuneline.data.sources.read import read_rows
from tuneline.data.sources.resolve import resolve

BOUNDED = settings(max_examples=60, deadline=None, derandomize=True, database=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=12)
CELLS = st.lists(st.tuples(TEXT.map(lambda text: text.replace("\r", "\n")), TEXT), min_size=1, max_size=12)
PACKED = st.sampled_from(["", ".gz", ".zst"])


@pytest.fixture(autouse=True, scope="module", params=[7, 2**18])
def block_bytes(request: pytest.FixtureRequest) -> Any:
    """Every property holds with blocks smaller than a row too, so that each row crosses their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", request.param)
        yield request.param


def read_back(name: str, content: bytes) -> list[SourceRow | UnreadableRow]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(pack(content, path.suffix))
        (file,) = resolve(str(path), "data.train")
        return [type(row)(row.row_id.removeprefix(str(path)), *fields(row)) for row in read_rows(file)]


def fields(row: SourceRow | UnreadableRow) -> tuple[Any]:
    return (row.values,) if isinstance(row, SourceRow) else (row.why,)


def pack(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return bytes(pa.Codec("zstd").compress(content, asbytes=True)) if suffix == ".zst" else content


@BOUNDED
@given(ROWS, PACKED, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_jsonl_rows_come_back(rows: list[dict[str, Any]], packed: str, line_end: str, as_ascii: bool) -> None:
    text = line_end.join(json.dumps(row, ensure_ascii=as_ascii) for row in rows)
    step = line_end.count("\n")
    expected = [SourceRow(f":{1 + step * index}", row) for index, row in enumerate(rows)]
    assert read_back(f"r.jsonl{packed}", text.encode()) == expected


@BOUNDED
@given(ROWS, PACKED, st.sampled_from([None, 0, 1, 4]))
def test_json_rows_come_back(rows: list[dict[str, Any]], packed: str, indent: int | None) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    read = read_back(f"r.json{packed}", text.encode())
    assert [fields(row)[0] for row in read] == rows
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines, 1) if line.startswith(" " * (indent or 0) + "{")]
    if indent:
        assert [row.row_id for row in read] == [f":{number}" for number in starts]
    elif indent is None:
        assert {row.row_id for row in read} == {":1"}


@BOUNDED
@given(CELLS, PACKED, st.sampled_from(["\n", "\r\n"]), st.sampled_from([",", "\t"]))
def test_csv_and_tsv_rows_come_back(rows: list[tuple[str, str]], packed: str, line_end: str, delimiter: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", 'b "quoted"'])
    expected = []
    for row in rows:
        expected.append(
            SourceRow(f":{1 + text.getvalue().count(chr(10))}", dict(zip(["a", 'b "quoted"'], row, strict=True)))
        )
        writer.writerow(row)
    name = "r.csv" if delimiter == "," else "r.tsv"
    assert read_back(name + packed, text.getvalue().encode()) == expected


@BOUNDED
@given(st.lists(st.fixed_dictionaries({"a": TEXT, "b": st.lists(st.integers(0, 9), max_size=3)}), min_size=1))
def test_parquet_rows_come_back(rows: list[dict[str, Any]]) -> None:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    assert read_back("r.parquet", sink.getvalue()) == [SourceRow(f"#{index}", row) for index, row in enumerate(rows)]


@BOUNDED
@given(ROWS, st.binary(max_size=200))
def test_any_bytes_after_jsonl_rows_never_raise_and_never_lose_them(rows: list[dict[str, Any]], noise: bytes) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    read = read_back("r.jsonl", text.encode() + noise)
    assert read[: len(rows)] == [SourceRow(f":{1 + index}", row) for index, row in enumerate(rows)]


@BOUNDED
@given(CELLS, st.binary(max_size=200), st.sampled_from(["r.csv", "r.tsv"]))
def test_any_bytes_after_csv_rows_never_raise_and_never_lose_them(
    rows: list[tuple[str, str]], noise: bytes, name: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="," if name == "r.csv" else "\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    read = read_back(name, text.getvalue().encode() + noise)
    assert [fields(row)[0] for row in read[: len(rows)]] == [{"a": a, "b": b} for a, b in rows]


@BOUNDED
@given(ROWS, st.binary(max_size=200))
def test_any_bytes_after_json_rows_never_raise_and_never_lose_them(rows: list[dict[str, Any]], noise: bytes) -> None:
    text = "[" + "".join(f"\n  {json.dumps(row)}," for row in rows)
    read = read_back("r.json", text.encode() + noise)
    assert read[: len(rows)] == [SourceRow(f":{2 + index}", row) for index, row in enumerate(rows)]


@BOUNDED
@given(ROWS, st.sampled_from([".gz", ".zst"]), st.floats(0.1, 0.99))
def test_a_packed_file_torn_anywhere_gives_whole_rows_then_the_tear(
    rows: list[dict[str, Any]], packed: str, share: float
) -> None:
    noise = random.Random(7)
    rows = [*rows, *({"text": noise.randbytes(40).hex()} for _ in range(30))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    whole = pack(text.encode(), packed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"r.jsonl{packed}"
        path.write_bytes(whole[: int(len(whole) * share)])
        (file,) = resolve(str(path), "data.train")
        try:
            read = list(read_rows(file))
        except Exception as error:
            assert "it cannot be unpacked" in str(error)
            return
    *good, last = read
    assert [fields(row)[0] for row in good] == rows[: len(good)]
    assert isinstance(last, UnreadableRow)
    assert last.row_id == f"{path}:{len(good) + 1}"
