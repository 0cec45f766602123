from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tuneline.contracts.errors import UserError
from tuneline.data.sources import read_rows, require_columns


def problem(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(str(path), "data.train")
    return str(caught.value)


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,category\r\n"two\r\nlines, and ""quotes""",a\r\nnext ,b\r\n')
    rows = read_rows(str(path), "data.train")
    assert [row.row_id for row in rows] == [f"{path}:2", f"{path}:4"]
    assert rows[0].values == {"text": 'two\r\nlines, and "quotes"', "category": "a"}
    assert rows[1].values["text"] == "next "


def test_jsonl_with_a_byte_order_mark_and_blank_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xc3\xa9"}\n')
    rows = read_rows(str(path), "data.train")
    assert [(row.row_id, row.values) for row in rows] == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "é"})]


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"a": ["x", "y"], "m": [[{"role": "user", "content": "q"}], []]}), path)
    rows = read_rows(str(path), "data.train")
    assert [row.row_id for row in rows] == [f"{path}#0", f"{path}#1"]
    assert rows[0].values == {"a": "x", "m": [{"role": "user", "content": "q"}]}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("absent.csv", None, "no such file"),
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", b"a,b\n", "the file has no rows"),
        ("rows.xlsx", b"x", "`.xlsx` is not a format that is read"),
        ("latin.csv", b"a,b\n1,2\ncaf\xe9,3\n", "latin.csv:3: byte 0xe9 is not UTF-8"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "ragged.csv:3: 3 cells where the header has 2"),
        ("twice.csv", b"a,a\n1,2\n", "two columns have the same name"),
        ("broken.jsonl", b'{"a": 1}\n{"a": \n', "broken.jsonl:2: not JSON"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1: a list where an object is needed"),
        ("broken.parquet", b"PAR1 no", "not Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_and_where(
    tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert what in problem(path)


def test_a_missing_column_names_the_nearest_and_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,category\na,b\n")
    with pytest.raises(UserError) as caught:
        require_columns(read_rows(str(path), "data.train"), {"data.prompt_column": "txt"}, str(path))
    message = str(caught.value)
    assert "no column `txt` (named by data.prompt_column)" in message
    assert "did you mean `text`? the columns are text, category" in message
