"""Checkpoints that can be trusted: written aside, synced, sealed with a manifest, and only then given their name.

transformers writes `checkpoint-N`; sealed and renamed it is `step-N`, and nothing else is ever resumed from. A folder
of that name still counts only while the sizes and hashes of its manifest hold: disks lose bits too.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import UserError
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.store import FileEntry, write_whole

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
UNSEALED = "checkpoint-"
"""transformers' prefix of a folder that it writes; the step follows."""
SEALED = "step-"


class Manifest(Record):
    """The files of a checkpoint, the seconds that training had taken, and what it was a training of."""

    step: int
    files: tuple[FileEntry, ...]
    train_seconds: float
    facts: dict[str, str] = Field(default_factory=dict)
    """What the weights depend on, as `training.facts` lists it."""


def seal(folder: Path, step: int, train_seconds: float, facts: Mapping[str, str]) -> Path:
    """Sync what was written at a step, write its manifest and give it its name; from here on it counts.

    Returns:
        The checkpoint.
    """
    written, checkpoint = folder / f"{UNSEALED}{step}", folder / f"{SEALED}{step}"
    files = sorted(path for path in written.rglob("*") if path.is_file())
    entries = tuple(
        FileEntry(
            path=path.relative_to(written).as_posix(), size_bytes=path.stat().st_size, sha256=_synced_sha256(path)
        )
        for path in files
    )
    manifest = Manifest(step=step, files=entries, train_seconds=train_seconds, facts=dict(facts))
    write_whole(written / MANIFEST, manifest.model_dump_json(indent=1))
    for path in {written, *(file.parent for file in files)}:
        _sync(path)
    written.rename(checkpoint)
    _sync(folder)
    return checkpoint


def newest_whole(folder: Path) -> tuple[Path, Manifest] | None:
    """Find the newest checkpoint whose manifest holds; torn ones newer than it, and unsealed ones, are deleted."""
    for unsealed in folder.glob(f"{UNSEALED}*"):
        print(f"{unsealed.name} was never finished (the process died while writing it): deleted", flush=True)
        shutil.rmtree(unsealed)
    for checkpoint in sorted(folder.glob(f"{SEALED}*"), key=step_of, reverse=True):
        manifest = _read_whole(checkpoint)
        if manifest:
            return checkpoint, manifest
        print(f"{checkpoint.name} is torn (its files are not those of its manifest): deleted", flush=True)
        shutil.rmtree(checkpoint)
    return None


def check_same_training(manifest: Manifest, facts: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with another training than the one that wrote a checkpoint.

    Raises:
        UserError: with everything that differs.
    """
    names = sorted(manifest.facts.keys() | facts.keys())
    changed = [
        f"{name} was {manifest.facts.get(name, 'not set')}, is {facts.get(name, 'not set')}"
        for name in names
        if manifest.facts.get(name) != facts.get(name)
    ]
    if changed:
        what = f"the checkpoint of step {manifest.step} belongs to another training: {'; '.join(changed)}"
        raise UserError.of(what, str(folder), "put back what changed, or delete this folder to begin anew")


def prune(folder: Path, keep: int, best_step: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one; called after the newest was sealed."""
    for checkpoint in sorted(folder.glob(f"{SEALED}*"), key=step_of)[:-keep]:
        if step_of(checkpoint) != best_step:
            shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step from a sealed checkpoint's name."""
    return int(checkpoint.name.removeprefix(SEALED))


def at_step(folder: Path, step: int) -> Path:
    """Name the sealed checkpoint of a step."""
    return folder / f"{SEALED}{step}"


def _read_whole(checkpoint: Path) -> Manifest | None:
    try:
        manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return manifest if all(_holds(checkpoint / entry.path, entry) for entry in manifest.files) else None


def _holds(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes and sha256_file(path) == entry.sha256


def _synced_sha256(path: Path) -> str:
    _sync(path)
    return sha256_file(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
