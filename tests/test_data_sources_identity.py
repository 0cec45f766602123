import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tuneline.contracts.errors import UserError
from tuneline.contracts.hashing import HashCache
from tuneline.data.sources.identity import SourceIdentity, source_identity


def identity(source: Path | str, cache: Path) -> SourceIdentity:
    return source_identity(str(source), "data.train", HashCache(cache))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_one_file_is_identified_by_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a\n1\n")
    assert identity(tmp_path / "r.csv", tmp_path / "h") == SourceIdentity(1, sha256("a\n1\n"), 4)


def test_several_files_are_identified_by_their_hashes_and_names_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there/deep"):
        (tmp_path / place / "x").mkdir(parents=True)
        (tmp_path / place / "b.csv").write_text("a\n2\n")
        (tmp_path / place / "x" / "a.csv").write_text("a\n10\n")
    expected = sha256(
        "".join(
            sorted(
                [
                    f"{sha256('a' + chr(10) + '2' + chr(10))}  b.csv\n",
                    f"{sha256('a' + chr(10) + '10' + chr(10))}  x/a.csv\n",
                ]
            )
        )
    )
    assert identity(tmp_path / "here", tmp_path / "h") == SourceIdentity(2, expected, 9)
    assert identity(tmp_path / "there/deep", tmp_path / "h").sha256_or_tag == expected


def test_the_identity_changes_with_content_and_with_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_text("a\n1\n")
    (data / "b.csv").write_text("a\n2\n")
    before = identity(data, tmp_path / "h").sha256_or_tag
    (data / "b.csv").rename(data / "c.csv")
    renamed = identity(data, tmp_path / "h").sha256_or_tag
    (data / "c.csv").write_text("a\n3\n")
    assert len({before, renamed, identity(data, tmp_path / "h").sha256_or_tag}) == 3


def test_a_source_that_is_not_there_is_told_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train .*absent\.csv: no such file"):
        identity(tmp_path / "absent.csv", tmp_path / "h")


def test_local_files_are_identified_without_the_libraries_of_the_other_sources(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    program = (
        "import sys; from pathlib import Path; from tuneline.contracts.hashing import HashCache;"
        "from tuneline.data.sources.identity import source_identity;"
        f"source_identity({str(tmp_path / 'r.parquet')!r}, 'data.train', HashCache(Path({str(tmp_path / 'h')!r})));"
        "print([n for n in ('datasets', 'pyarrow', 'fsspec', 's3fs', 'gcsfs', 'aiohttp', 'huggingface_hub', 'numpy')"
        " if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(("source", "tag"), [("hub:owner/name", "main"), ("hub:owner/name@v2", "v2")])
def test_a_hub_dataset_is_its_revision_where_the_hub_is_not_reached(tmp_path: Path, source: str, tag: str) -> None:
    assert identity(source, tmp_path / "h") == SourceIdentity(1, tag, 0)
