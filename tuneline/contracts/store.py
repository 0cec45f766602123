"""Artifact folders: written aside, synced, recorded last, renamed. An artifact is there whole or not at all.

    root/artifacts/STAGE/FINGERPRINT/   the stage's files and record.json
    root/work/STAGE-FINGERPRINT/        being made; a training that was killed finds its checkpoints here
    root/locks/STAGE-FINGERPRINT        held while an artifact is being made, so that two runs never make one twice

The store is the truth with or without Prefect: what a caller is told to have been found was checked against its record.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from tuneline.contracts.artifacts import Record
from tuneline.contracts.fingerprint import sha256_file

RECORD = "record.json"
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Stored(Generic[R]):
    """An artifact in the store; `found` when it was not made in this run."""

    stage: str
    fingerprint: str
    path: Path
    record: R
    found: bool
    seconds: float
    """What making it took, whenever that was."""


class FileEntry(Record):
    """A file of an artifact: path relative to its folder, size in bytes, sha256."""

    path: str
    size_bytes: int
    sha256: str


class StoredRecord(Record):
    """The content of `record.json`."""

    stage: str
    fingerprint: str
    made_at: str
    seconds: float
    artifact: dict[str, object]
    files: tuple[FileEntry, ...]


class ArtifactStore:
    """The artifacts below one folder."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which is made when the first artifact is."""
        self.root = root

    def find(self, stage: str, fingerprint: str, kind: type[R]) -> Stored[R] | None:
        """Return the artifact when it is whole: its record reads and each file has the recorded size."""
        path = self._artifact_path(stage, fingerprint)
        try:
            stored = StoredRecord.model_validate_json((path / RECORD).read_text(encoding="utf-8"))
            record = kind.model_validate(stored.artifact)
        except (FileNotFoundError, ValidationError):
            return None
        if any(_size_bytes(path / entry.path) != entry.size_bytes for entry in stored.files):
            return None
        return Stored(stage, fingerprint, path, record, found=True, seconds=stored.seconds)

    def damaged_files(self, stage: str, fingerprint: str) -> list[str]:
        """Name the files of an artifact whose bytes no longer have the recorded sha256."""
        path = self._artifact_path(stage, fingerprint)
        stored = StoredRecord.model_validate_json((path / RECORD).read_text(encoding="utf-8"))
        return [entry.path for entry in stored.files if sha256_file(path / entry.path) != entry.sha256]

    @contextmanager
    def work(self, stage: str, fingerprint: str, *, keep: bool = False) -> Iterator[Path]:
        """Hold the artifact's lock and give the folder it is made in.

        Args:
            stage: the stage's name.
            fingerprint: the artifact's identity.
            keep: leave what an interrupted attempt wrote (training resumes from it); otherwise start empty and
                leave nothing behind on failure.
        """
        folder = self.root / "work" / f"{stage}-{fingerprint}"
        with exclusive_lock(self.root / "locks" / f"{stage}-{fingerprint}"):
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder
            finally:
                if not keep:
                    shutil.rmtree(folder, ignore_errors=True)

    def commit(self, stage: str, fingerprint: str, work: Path, record: R, seconds: float) -> Stored[R]:
        """Make a finished folder an artifact: sync every file, write the record, rename, sync the parent."""
        files = tuple(_entry(work, path) for path in sorted(work.rglob("*")) if path.is_file())
        stored = StoredRecord(
            stage=stage,
            fingerprint=fingerprint,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            artifact=record.model_dump(mode="json"),
            files=files,
        )
        write_whole(work / RECORD, stored.model_dump_json(indent=1))
        target = self._artifact_path(stage, fingerprint)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # only ever a damaged one: a whole one is found, not made again
        work.rename(target)
        _sync(target.parent)
        return Stored(stage, fingerprint, target, record, found=False, seconds=seconds)

    def _artifact_path(self, stage: str, fingerprint: str) -> Path:
        return self.root / "artifacts" / stage / fingerprint


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock file against every other thread and process of this machine; waits for its holder.

    The kernel frees it however the holder dies, so a lock is never left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees all of it or its former content: aside, sync, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(path)
    _sync(path.parent)


def read_record(folder: Path, kind: type[R]) -> R:
    """Read the record of an artifact's folder, as a child process does with its inputs."""
    stored = StoredRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    return kind.model_validate(stored.artifact)


def read_json(path: Path) -> object:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _entry(root: Path, path: Path) -> FileEntry:
    _sync(path)
    return FileEntry(path=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_file(path))


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
