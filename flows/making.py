"""Artifacts found in the store or made there; heavy stages in child processes of their own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flows.launch import raise_for, run_child
from flows.progress import Listener, shown
from tuneline.contracts.artifacts import Record
from tuneline.contracts.jobs import OUTPUT, Job
from tuneline.contracts.store import ArtifactStore, Stored

R = TypeVar("R", bound=Record)


def obtain(
    store: ArtifactStore,
    stage: str,
    fingerprint: str,
    kind: type[R],
    make: Callable[[Path], R],
    *,
    keep: bool = False,
) -> Stored[R]:
    """Find an artifact in the store, or make it there.

    Args:
        store: the store.
        stage: the stage's name.
        fingerprint: the artifact's identity.
        kind: type of its record.
        make: writes the artifact's files into the folder that it is given and returns the record.
        keep: leave the folder of an interrupted attempt, for the next one to go on from.
    """
    found = store.find(stage, fingerprint, kind)
    if found is not None:
        return found
    with store.work(stage, fingerprint, keep=keep) as work:
        found = store.find(stage, fingerprint, kind)  # made by another run while this one waited for the lock
        if found is not None:
            return found
        started = time.monotonic()
        record = make(work)
        return store.commit(stage, fingerprint, work, record, time.monotonic() - started)


def run_stage_child(package: str, job: Job, kind: type[R], store: ArtifactStore, listen: Listener | None = None) -> R:
    """Run a stage in a child process of its own and return the record that it made.

    Raises:
        UserError: the child met input that a user can mend.
        StageFailed: it ended without its artifact.
    """
    job_dir = store.root / "jobs" / job.out_dir.name
    with shown(job.stage) as show:
        result = run_child(package, job, job_dir, _both(show, listen))
    raise_for(result, job.stage, job_dir / OUTPUT)
    return kind.model_validate(result.artifact)


def _both(first: Listener, second: Listener | None) -> Listener:
    if second is None:
        return first

    def listen(event: object) -> None:
        first(event)  # type: ignore[arg-type]
        second(event)  # type: ignore[arg-type]

    return listen
