"""Checkpoints that can be trusted: a folder counts only when the manifest written last, and synced, still holds."""

import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from tuneline.contracts.artifacts import Adapter, Record
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.store import FileEntry, write_whole

FOLDER = Adapter.CHECKPOINTS
MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
"""transformers' prefix of a checkpoint's folder; the step follows."""


class Manifest(Record):
    """The files of a checkpoint, and the seconds that training had taken when it was written."""

    step: int
    files: tuple[FileEntry, ...]
    train_seconds: float


def seal(checkpoint: Path, train_seconds: float) -> None:
    """Sync a checkpoint's files and write its manifest; from here on it counts."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = tuple(
        FileEntry(
            path=path.relative_to(checkpoint).as_posix(), size_bytes=path.stat().st_size, sha256=_synced_sha256(path)
        )
        for path in files
    )
    manifest = Manifest(step=step_of(checkpoint), files=entries, train_seconds=train_seconds)
    write_whole(checkpoint / MANIFEST, manifest.model_dump_json(indent=1))


def newest_whole(folder: Path) -> tuple[Path, Manifest] | None:
    """Find the newest checkpoint whose manifest holds; torn ones newer than it are deleted."""
    for checkpoint in sorted(folder.glob(f"{PREFIX}*"), key=step_of, reverse=True):
        manifest = _read_whole(checkpoint)
        if manifest:
            return checkpoint, manifest
        print(f"{checkpoint.name} is torn (the process died while writing it): deleted", flush=True)
        shutil.rmtree(checkpoint)
    return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; called after the newest was sealed."""
    for checkpoint in sorted(folder.glob(f"{PREFIX}*"), key=step_of)[:-keep]:
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step from a checkpoint's name."""
    return int(checkpoint.name.removeprefix(PREFIX))


def _read_whole(checkpoint: Path) -> Manifest | None:
    try:
        manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return manifest if all(_holds(checkpoint / entry.path, entry) for entry in manifest.files) else None


def _holds(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes and sha256_file(path) == entry.sha256


def _synced_sha256(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return sha256_file(path)
