import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from tuneline.contracts.errors import UserError
from tuneline.data.rows import SourceRow, UnreadableRow
from tuneline.data.sources.blocks import BLOCK_BYTES
from tuneline.data.sources.read import read_rows
from tuneline.data.sources.resolve import resolve


def read(path: Path) -> list[SourceRow | UnreadableRow]:
    return [row for file in resolve(str(path), "data.train") for row in read_rows(file)]


def seen(path: Path) -> list[tuple[str, object]]:
    """Rows as (what follows the path in the row's name, values) or (..., why it cannot be read)."""
    return [
        (row.row_id.removeprefix(str(path)), row.values if isinstance(row, SourceRow) else row.why)
        for row in read(path)
    ]


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def problem(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


# CSV and TSV


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b'text,category\r\n"two\r\nlines, and ""quotes""",a\r\n\r\nnext ,b\r\n')
    assert seen(path) == [
        (":2", {"text": 'two\r\nlines, and "quotes"', "category": "a"}),
        (":5", {"text": "next ", "category": "b"}),
    ]


def test_csv_values_stay_strings_and_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b"\xef\xbb\xbfa,b\n1,\n2.50,\xc3\xa9")
    assert seen(path) == [(":2", {"a": "1", "b": ""}), (":3", {"a": "2.50", "b": "\u00e9"})]


def test_tsv_splits_at_tabs_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.tsv", b'a\tb\nx, y\t"tab\there"\n')
    assert seen(path) == [(":2", {"a": "x, y", "b": "tab\there"})]


def test_a_csv_row_with_too_many_or_too_few_cells_costs_itself_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b'a,b\n1,2\n1,2,3\n1\n"x\ny",2,3\n3,4\n')
    assert seen(path) == [
        (":2", {"a": "1", "b": "2"}),
        (":3", "3 cells where the header has 2"),
        (":4", "1 cells where the header has 2"),
        (":5", "3 cells where the header has 2 (lines 5 to 6)"),
        (":7", {"a": "3", "b": "4"}),
    ]


def test_a_csv_row_that_is_not_utf8_costs_itself_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b"a,b\n1,2\ncaf\xe9,3\n\xc3\xa9,4\n")
    assert seen(path) == [
        (":2", {"a": "1", "b": "2"}),
        (":3", "byte 0xe9 is not UTF-8"),
        (":4", {"a": "\u00e9", "b": "4"}),
    ]


@pytest.mark.parametrize("rows_after", [3, 200_000])
def test_a_quote_that_is_never_closed_costs_one_row_and_not_the_rest(tmp_path: Path, rows_after: int) -> None:
    path = written(tmp_path, "rows.csv", b'a,b\n1,2\n"open,3\n' + b"4,5\n" * rows_after)
    rows = seen(path)
    assert rows[:2] == [(":2", {"a": "1", "b": "2"}), (":3", "a quote opened on line 3 is never closed")]
    assert len(rows) == 2 + rows_after
    assert rows[-1] == (f":{3 + rows_after}", {"a": "4", "b": "5"})


def test_an_open_quote_is_given_up_after_the_longest_row_not_at_the_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneline.data.sources.csv_rows.ROW_BYTES_LIMIT", 2 * BLOCK_BYTES)
    path = written(tmp_path, "rows.csv", b'a,b\n"open,3\n' + b"4,5\n" * (2 * BLOCK_BYTES) + b'6,"7"\n')
    rows = seen(path)
    assert rows[0] == (":2", "a quote opened on line 2 is never closed")
    assert len(rows) == 2 + 2 * BLOCK_BYTES
    assert rows[-1] == (f":{3 + 2 * BLOCK_BYTES}", {"a": "6", "b": "7"})


def test_a_quote_that_the_next_quoted_row_seems_to_close_costs_one_row(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b'a,b\n1,"open\n2,plain\n3,"closed"\n')
    rows = seen(path)
    assert [row_id for row_id, _ in rows] == [":2", ":3", ":4"]
    assert "a quote opened on line 2 is not closed where its cell ends" in str(rows[0][1])
    assert rows[1:] == [(":3", {"a": "2", "b": "plain"}), (":4", {"a": "3", "b": "closed"})]


def test_a_csv_cell_of_many_blocks_is_read_whole_with_its_line_ends(tmp_path: Path) -> None:
    cell = "a line of a long cell\n" * (12 * BLOCK_BYTES // 22)
    path = written(tmp_path, "rows.csv", f'a,b\n"{cell}",1\nx,2\n'.encode())
    assert seen(path) == [(":2", {"a": cell, "b": "1"}), (f":{3 + cell.count(chr(10))}", {"a": "x", "b": "2"})]


def test_a_csv_with_a_header_and_no_row_has_no_rows(tmp_path: Path) -> None:
    assert seen(written(tmp_path, "rows.csv", b"a,b\n")) == []


# JSON lines


def test_jsonl_with_a_byte_order_mark_crlf_and_blank_lines_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xc3\xa9"}')
    assert seen(path) == [(":1", {"a": 1}), (":3", {"a": "\u00e9"})]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"a": ', "not JSON: "),
        (b'{"a": "caf\xe9"}', "byte 0xe9 is not UTF-8 (column 11)"),
        (b'{"a": "\\ud800"}', "not JSON: no low surrogate"),
        (b'{"a": NaN}', "NaN is not JSON (column 7)"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "an array where an object is needed"),
        (b'"text"', "a string where an object is needed"),
        (b"7", "a number where an object is needed"),
        (b"null", "null where an object is needed"),
        (b'{"a": ' * 2000, "not JSON: depth limit exceeded"),
    ],
)
def test_a_line_that_is_no_object_costs_itself_alone(tmp_path: Path, line: bytes, why: str) -> None:
    path = written(tmp_path, "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    before, bad, after = seen(path)
    assert (before, after) == ((":1", {"a": 1}), (":3", {"a": 2}))
    assert bad[0] == ":2"
    assert str(bad[1]).startswith(why)


def test_a_jsonl_string_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    text = "x" * 10_000_000
    assert seen(written(tmp_path, "rows.ndjson", f'{{"a": "{text}"}}\n{{"a": ""}}'.encode())) == [
        (":1", {"a": text}),
        (":2", {"a": ""}),
    ]


# JSON arrays


def test_a_json_array_is_read_object_by_object_with_their_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path, "rows.json", b'\xef\xbb\xbf [\n  {\n    "a": "]}\\"[{"\n  },\n\n  {"a": {"b": [1]}}, {"a": 3}\n]\n'
    )
    assert seen(path) == [(":2", {"a": ']}"[{'}), (":6", {"a": {"b": [1]}}), (":6", {"a": 3})]


def test_objects_one_a_line_in_a_json_file_are_read(tmp_path: Path) -> None:
    assert seen(written(tmp_path, "rows.json", b'{"a": 1}\n{"a": 2}\n')) == [(":1", {"a": 1}), (":2", {"a": 2})]


@pytest.mark.parametrize(
    ("element", "why"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xe9"}', "byte 0xe9 is not UTF-8"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": "\\udc00"}', "not JSON"),
        (b"17", "a number where an object is needed"),
        (b'["a", {"b": 1}]', "an array where an object is needed"),
        (b'"a, ]"', "a string where an object is needed"),
        (b'{"a": "open}', "the object that starts here is not closed, or a string in it is not"),
        (b'{"a": 1', "the object that starts here is not closed, or a string in it is not"),
    ],
)
def test_an_element_that_is_no_object_costs_itself_alone(tmp_path: Path, element: bytes, why: str) -> None:
    path = written(tmp_path, "rows.json", b'[\n  {"a": 1},\n  ' + element + b',\n  {"a": [\n    {"b": 2}\n  ]}\n]')
    before, bad, after = seen(path)
    assert (before, after) == ((":2", {"a": 1}), (":4", {"a": [{"b": 2}]}))
    assert bad[0] == ":3"
    assert str(bad[1]).startswith(why)


def test_strings_that_are_not_closed_do_not_pair_up_over_the_rows_between(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.json", b'[\n{"a": "open},\n{"a": 1},\n{"a": "open},\n{"a": 2}\n]')
    assert [(row_id, values) for row_id, values in seen(path) if isinstance(values, dict)] == [
        (":3", {"a": 1}),
        (":5", {"a": 2}),
    ]


def test_a_json_file_that_breaks_off_gives_the_rows_before_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.json", b'[\n{"a": 1},\n{"a": 2')
    assert seen(path) == [
        (":2", {"a": 1}),
        (":3", "the object that starts here is not closed, or a string in it is not"),
        (":3", "the file ends before its array is closed"),
    ]


def test_what_follows_a_json_array_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.json", b'[{"a": 1}]\n[{"a": 2}]')
    assert seen(path) == [(":1", {"a": 1}), (":2", "something follows the array; it is not read")]


def test_a_json_object_larger_than_many_blocks_is_read(tmp_path: Path) -> None:
    text = 'quote \\" and brace } ' * (10 * BLOCK_BYTES // 20)
    path = written(tmp_path, "rows.json", f'[{{"a": "{text}"}},\n{{"a": 1}}]'.encode())
    assert seen(path) == [(":1", {"a": text.replace("\\", "")}), (":2", {"a": 1})]


# Parquet and Arrow


def test_parquet_rows_are_named_by_their_index(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"a": f"x{index}", "m": [{"role": "user"}] * (index % 3)} for index in range(2_500)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert seen(path) == [(f"#{index}", row) for index, row in enumerate(rows)]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"a": [f"text {index}" for index in range(30)]})
    parquet.write_table(table, path, row_group_size=10, compression="gzip", use_dictionary=False)
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    start = column.data_page_offset + 40
    raw[start : start + 20] = b"\xff" * 20
    path.write_bytes(raw)
    rows = seen(path)
    assert [row_id for row_id, _ in rows] == [f"#{index}" for index in (*range(11), *range(20, 30))]
    assert "damaged from here on (rows 10 to 19)" in str(rows[10][1])


@pytest.mark.parametrize("writer", [ipc.new_file, ipc.new_stream])
def test_both_arrow_formats_are_read(tmp_path: Path, writer: type) -> None:
    path = tmp_path / "rows.arrow"
    table = pa.table({"a": [f"x{index}" for index in range(2_500)]})
    with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=1_100)
    assert seen(path) == [(f"#{index}", {"a": f"x{index}"}) for index in range(2_500)]


def test_a_torn_arrow_stream_gives_the_batches_before_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    table = pa.table({"a": list(range(300))})
    with pa.OSFile(str(path), "wb") as sink, ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=100)
    path.write_bytes(path.read_bytes()[:-300])
    rows = seen(path)
    assert rows[:200] == [(f"#{index}", {"a": index}) for index in range(200)]
    assert [row_id for row_id, _ in rows[200:]] == ["#200"]
    assert "damaged from here on" in str(rows[200][1])


def test_an_arrow_value_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    bad = pa.array([b"x", b"\xff", b"y"]).view(pa.string())
    table = pa.table({"a": bad})
    with pa.OSFile(str(path), "wb") as sink, ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    rows = seen(path)
    assert (rows[0], rows[2]) == (("#0", {"a": "x"}), ("#2", {"a": "y"}))
    assert rows[1][0] == "#1"
    assert "can't decode byte 0xff" in str(rows[1][1])


# Compressed files


def packed(raw: bytes, suffix: str) -> bytes:
    return gzip.compress(raw) if suffix == ".gz" else bytes(pa.Codec("zstd").compress(raw, asbytes=True))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "raw"),
    [("r.csv", b"a\n1\n"), ("r.tsv", b"a\n1\n"), ("r.jsonl", b'{"a": "1"}\n'), ("r.json", b'[\n{"a": "1"}]')],
)
def test_text_formats_are_unpacked(tmp_path: Path, name: str, raw: bytes, suffix: str) -> None:
    path = written(tmp_path, name + suffix, packed(raw, suffix))
    assert [values for _, values in seen(path)] == [{"a": "1"}]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_one_after_the_other_are_one_file(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, f"r.jsonl{suffix}", packed(b'{"a": 1}\n', suffix) + packed(b'{"a": 2}\n', suffix))
    assert seen(path) == [(":1", {"a": 1}), (":2", {"a": 2})]


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.zst", "r.csv.gz", "r.json.gz"])
def test_a_torn_file_gives_every_whole_row_before_the_tear_and_names_the_line(tmp_path: Path, name: str) -> None:
    texts = [f"{index * 7919 % 10_007:05d}" * 8 for index in range(20_000)]
    lines = [f'{{"a": "{text}"}}' for text in texts]
    raw = {".csv": "a\n" + "\n".join(texts), ".json": "[\n" + ",\n".join(lines), ".jso": "\n".join(lines)}[
        ".csv" if ".csv" in name else ".json" if ".json." in name else ".jso"
    ].encode()
    whole = packed(raw, Path(name).suffix)
    path = written(tmp_path, name, whole[: len(whole) * 2 // 3])
    rows = seen(path)
    good = [values["a"] for _, values in rows if isinstance(values, dict)]
    assert 5_000 < len(good) < 20_000
    assert good == texts[: len(good)]
    first_row_line = 1 if ".jsonl" in name else 2
    last_id, last_why = rows[-1]
    assert last_id == f":{len(good) + first_row_line}"
    assert "is torn in this line, what follows is lost" in str(last_why)
    assert not any("ends before its array" in str(why) for _, why in rows)


def test_the_tear_loses_no_row_that_gzip_itself_would_unpack(tmp_path: Path) -> None:
    raw = b"".join(b'{"a": %d}\n' % (index * 7919 % 10_007) for index in range(50_000))
    torn = gzip.compress(raw)[:-20]
    path = written(tmp_path, "r.jsonl.gz", torn)
    with gzip.open(path) as unpacked:
        whole_rows = 0
        with pytest.raises(EOFError):
            while True:
                whole_rows += unpacked.read1(100).count(b"\n")
    assert sum(isinstance(values, dict) for _, values in seen(path)) == whole_rows


def test_a_csv_row_cut_off_by_a_tear_inside_quotes_is_named(tmp_path: Path) -> None:
    raw = b'a,b\n1,2\n3,"' + b"".join(b"%d\n" % (index * 7919 % 10_007) for index in range(50_000)) + b'"\n'
    whole = gzip.compress(raw)
    rows = seen(written(tmp_path, "r.csv.gz", whole[: len(whole) // 2]))
    assert rows[:2] == [(":2", {"a": "1", "b": "2"}), (":3", "the file is torn in the row that starts here")]
    assert len(rows) == 3


# Files that cannot be read at all


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("twice.csv", b"a,b,a,b,c\n1,2,3,4,5\n", "twice.csv:1: two columns have the same name: `a`, `b`"),
        ("latin.csv", b"caf\xe9,b\n1,2\n", "latin.csv:1: the header is not UTF-8"),
        ("mac.csv", b"a,b\r1,2\r", "a carriage return without a line feed"),
        ("open.csv", b'"a,b\n1,2\n', "open.csv:1: the header cannot be read: a quote opened on line 1 is never closed"),
        ("wide.jsonl", '{"a": 1}\n'.encode("utf-16"), "it looks like UTF-16\n    save as UTF-8"),
        ("wide.csv", "a,b\n1,2\n".encode("utf-16-le"), "it looks like UTF-16"),
        ("bom.jsonl.gz", gzip.compress(b""), "the file is empty"),
        ("object.json", b'{"data": [{"a": 1}], "n": 1}\n', 'put the array under "data" into a file of its own'),
        ("object.json", b'{\n  "a": 1\n}\n', "one object at the top where an array of objects is needed"),
        ("unclosed.json", b'{\n  "data": [\n    {"a": 1},\n', "one object at the top where an array of objects is"),
        ("text.json", b"hello", "starts with an array or an object, not with 'h'"),
        ("broken.parquet", b"PAR1 no", "not Parquet"),
        ("broken.arrow", b"ARROW1 no", "not Arrow"),
        ("plain.jsonl.gz", b'{"a": 1}\n', "it cannot be unpacked: "),
        ("plain.jsonl.zst", b'{"a": 1}\n', "it cannot be unpacked: "),
    ],
)
def test_a_file_that_cannot_be_read_says_what_and_where(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    assert what in problem(written(tmp_path, name, content))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "a"])
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema) as stream:
            stream.write_table(table)
    assert f"{path}: two columns have the same name: `a`\n" in problem(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneline.data.sources.blocks.ROW_BYTES_LIMIT", 2 * BLOCK_BYTES)
    path = written(tmp_path, "rows.jsonl", b'{"a": 1}\n' + b"[" * (4 * BLOCK_BYTES))
    assert f"{path}:2: the line is longer than" in problem(path)


def test_a_file_that_vanished_after_it_was_found_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", b"{}\n")
    (file,) = resolve(str(path), "data.train")
    path.unlink()
    with pytest.raises(UserError, match="it cannot be opened: No such file"):
        list(read_rows(file))


# Memory


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.json"])
def test_reading_fifty_megabytes_takes_less_than_thirty(tmp_path: Path, name: str) -> None:
    line = {"r.jsonl": b'{"a": "%s"}\n', "r.json": b'{"a": "%s"},\n', "r.csv": b'1,"%s"\n'}[name] % (b"x" * 480)
    first = {"r.jsonl": b"", "r.json": b"[", "r.csv": b"n,a\n"}[name]
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(first)
        for _ in range(50):
            file.write(line * (2**20 // len(line)))
    (source,) = resolve(str(path), "data.train")
    tracemalloc.start()
    rows = sum(isinstance(row, SourceRow) for row in read_rows(source))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 50 * (2**20 // len(line))
    assert peak_bytes < 30 * 2**20
