import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tuneline.contracts.artifacts import LengthSummary
from tuneline.contracts.store import ArtifactStore, read_record, write_whole

RECORD = LengthSummary(p50=1, p90=2, p95=3, p99=3, max=4)


def make(store: ArtifactStore, text: str = "weights") -> Path:
    with store.work("train", "f1") as work:
        (work / "deep").mkdir()
        (work / "deep" / "file.bin").write_text(text)
        return store.commit("train", "f1", work, RECORD, 1.5).path


def test_a_committed_artifact_is_found_with_its_record_and_files(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    path = make(store)
    found = store.find("train", "f1", LengthSummary)
    assert found is not None
    assert (found.record, found.seconds, found.found, found.path) == (RECORD, 1.5, True, path)
    assert (path / "deep" / "file.bin").read_text() == "weights"
    assert read_record(path, LengthSummary) == RECORD


def test_nothing_is_found_before_it_is_made(tmp_path: Path) -> None:
    assert ArtifactStore(tmp_path).find("train", "f1", LengthSummary) is None


@pytest.mark.parametrize("damage", ["truncate", "remove", "no record", "other record"])
def test_a_damaged_artifact_is_not_found_and_can_be_made_again(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path)
    path = make(store)
    match damage:
        case "truncate":
            (path / "deep" / "file.bin").write_text("w")
        case "remove":
            (path / "deep" / "file.bin").unlink()
        case "no record":
            (path / "record.json").unlink()
        case "other record":
            (path / "record.json").write_text("{}")
    assert store.find("train", "f1", LengthSummary) is None
    make(store)
    assert store.find("train", "f1", LengthSummary) is not None


def test_changed_bytes_of_equal_length_are_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    path = make(store)
    assert store.damaged_files("train", "f1") == []
    (path / "deep" / "file.bin").write_text("weightz")
    assert store.damaged_files("train", "f1") == ["deep/file.bin"]


def test_a_stage_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(RuntimeError), store.work("merge", "f2") as work:
        (work / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "work").iterdir()) == []
    assert store.find("merge", "f2", LengthSummary) is None


def test_a_kept_work_folder_is_there_for_the_next_attempt(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(RuntimeError), store.work("train", "f3", keep=True) as work:
        (work / "checkpoint").write_text("step 100")
        raise RuntimeError
    with store.work("train", "f3", keep=True) as work:
        assert (work / "checkpoint").read_text() == "step 100"


def hold(root: Path, entered: Path) -> None:
    with ArtifactStore(root).work("train", "f4"):
        entered.touch()
        signal.pause()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "store", entered))
    holder.start()
    deadline = time.monotonic() + 30
    while not entered.exists():
        assert time.monotonic() < deadline, "the holder did not start"
        time.sleep(0.01)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with ArtifactStore(tmp_path / "store").work("train", "f4") as work:
        assert list(work.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]
