import os
import stat
from pathlib import Path

import pytest

from tuneline.contracts.errors import ExitCode, UserError
from tuneline.data.sources.resolve import SourceFile, resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with readable files at two levels, and others that are none."""
    for name in (
        "data/b.jsonl.gz",
        "data/a.csv",
        "data/deep/c.NDJSON",
        "data/.hidden.csv",
        "data/.git/d.csv",
        "data/deep/e.parquet",
        "data/dataset_info.json",
        "data/_SUCCESS",
        "data/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem(source: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(source, "data.train")
    assert caught.value.exit_code is ExitCode.WRONG_INPUT
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("r.csv", "csv", None),
        ("r.tsv.gz", "tsv", "gz"),
        ("r.json.zst", "json", "zst"),
        ("r.v2.jsonl", "jsonl", None),
        ("r.ndjson.gz", "jsonl", "gz"),
        ("R.PARQUET", "parquet", None),
        ("r.arrow", "arrow", None),
    ],
)
def test_kind_and_compression_follow_from_the_name(
    tmp_path: Path, name: str, kind: str, compression: str | None
) -> None:
    path = tmp_path / name
    path.write_text("four")
    assert resolve(str(path), "data.train") == (SourceFile(str(path), kind, compression, 4),)  # type: ignore[arg-type]


@pytest.mark.usefixtures("folder")
def test_a_path_stays_as_the_user_wrote_it() -> None:
    assert [file.url for file in resolve("./data/../data/a.csv", "data.train")] == ["./data/../data/a.csv"]


@pytest.mark.usefixtures("folder")
def test_a_folder_stands_for_its_readable_files_sorted_and_without_hidden_ones() -> None:
    found = resolve("data", "data.train")
    assert [file.url for file in found] == [
        "data/a.csv",
        "data/b.jsonl.gz",
        "data/deep/c.NDJSON",
        "data/deep/e.parquet",
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/*.jsonl.gz", ["data/b.jsonl.gz"]),
        ("data/**/*.[pc]*", ["data/a.csv", "data/deep/e.parquet"]),
        ("*/deep/?.NDJSON", ["data/deep/c.NDJSON"]),
        ("data/*.csv", ["data/a.csv"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_glob_stands_for_its_matches(pattern: str, names: list[str]) -> None:
    assert [file.url for file in resolve(pattern, "data.train")] == names


def test_an_absolute_glob_gives_absolute_paths(folder: Path) -> None:
    assert [file.url for file in resolve(f"{folder}/data/*.csv", "data.train")] == [f"{folder}/data/a.csv"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "rows[1].csv"
    path.write_text("a\n1\n")
    assert [file.url for file in resolve(str(path), "data.train")] == [str(path)]


def test_a_missing_file_says_where_it_was_looked_for_and_what_is_near(folder: Path) -> None:
    message = problem("data/aa.csv")
    assert "data.train data/aa.csv: no such file" in message
    assert f"looked from {folder}; did you mean `a.csv`?" in message


@pytest.mark.usefixtures("folder")
def test_a_missing_folder_is_named_by_its_nearest_neighbour() -> None:
    assert "did you mean `data`?" in problem("dat/x/a.csv")


@pytest.mark.usefixtures("folder")
def test_a_glob_without_match_says_what_is_there() -> None:
    assert "no file matches" in problem("data/*.tsv")
    assert "1 .txt" in problem("data/*.tsv")
    assert "there is no folder nowhere" in problem("nowhere/*.csv")


def test_a_folder_without_readable_file_says_what_is_in_it(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.pdf"):
        (tmp_path / name).write_text("x")
    assert f"no file in the folder can be read\n    {tmp_path} holds 2 .txt, 1 .pdf" in problem(str(tmp_path))


def test_every_file_of_a_glob_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.xlsx").write_text("x")
    (tmp_path / "c.csv").write_text("a\n1\n")
    message = problem(f"{tmp_path}/*")
    assert f"data.train {tmp_path}/a.csv: the file is empty" in message
    assert f"data.train {tmp_path}/b.xlsx: `.xlsx` is not a format that is read" in message
    assert "c.csv" not in message


@pytest.mark.parametrize("name", ["r.parquet.gz", "r.arrow.zst"])
def test_a_packed_table_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert "files are compressed inside, unpack it once" in problem(str(tmp_path / name))


def test_a_suffix_that_is_not_read_lists_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "r.txt.gz").write_text("x")
    message = problem(str(tmp_path / "r.txt.gz"))
    assert "`.txt.gz` is not a format that is read" in message
    assert ".csv, .tsv, .json, .jsonl, .ndjson, .parquet, .arrow; all but .parquet and .arrow also as .gz" in message


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.csv")
    assert stat.S_ISFIFO((tmp_path / "r.csv").stat().st_mode)
    assert "neither a file nor a folder" in problem(str(tmp_path / "r.csv"))


def test_an_unknown_protocol_lists_those_that_are_read() -> None:
    assert "`ftp://` is not read" in problem("ftp://host/r.csv")
    assert "http://, https://, s3://, gs://" in problem("ftp://host/r.csv")


@pytest.mark.parametrize(
    ("source", "reference"),
    [
        ("hub:owner/name", ("owner/name", None, None, "train")),
        ("hub:owner/name@v1.0", ("owner/name", None, "v1.0", "train")),
        ("hub:owner/name#test[:10%]", ("owner/name", None, None, "test[:10%]")),
        ("hub:owner/name@refs/pr/3#test", ("owner/name", None, "refs/pr/3", "test")),
        ("hub:owner/name/main@abc#test", ("owner/name", "main", "abc", "test")),
    ],
)
def test_a_hub_reference_is_taken_apart(source: str, reference: tuple[str, str | None, str | None, str]) -> None:
    (file,) = resolve(source, "data.train")
    assert (file.kind, file.url) == ("hub", source)
    assert (file.name, file.config, file.revision, file.split) == reference


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:owner/name@", "hub:owner/name#", "hub:../x"])
def test_a_broken_hub_reference_says_how_one_is_written(source: str) -> None:
    assert "write hub:owner/name, hub:owner/name@revision or hub:owner/name#split" in problem(source)
