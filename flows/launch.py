"""A stage as a child process: started, listened to, and ended with all that it started.

The flow never owns the child directly: between them stands a guardian (`flows.guardian`) that ends the stage's
processes when the flow lets go of them, which every way of leaving `run_child` does and so does every death of the
flow. What is left here is to write the job, to relay progress, and to read how it ended.

Nothing here needs Prefect. Its cancellation arrives as a `BaseException` out of a sleep or out of `on_event`.
"""

import errno
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flows.child_environment import child_environment
from flows.child_result import read_result
from flows.guardian import KILL_SECONDS, Ending
from flows.oom_kills import oom_kills
from flows.process_tree import ProcessRecord, gpu_memory_holders
from tuneline.contracts.errors import Problem, StageFailed, UserError
from tuneline.contracts.jobs import (
    JOB,
    OUTPUT,
    PROGRESS,
    RESERVE,
    RESULT,
    STARVED_RANK,
    Job,
    JobResult,
    JobStatus,
    ProgressEvent,
    disk_full,
)
from tuneline.contracts.lifeline import DEFAULT_GRACE_SECONDS, end_with_parent
from tuneline.contracts.store import write_whole

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.15
SLACK_SECONDS = 5.0
"""Beyond the grace and the kill, before the guardian itself counts as hung."""
RESERVE_BYTES = 64 << 10
LOCK = "lock"

EventHandler = Callable[[ProgressEvent], None]


def run_child(
    package: str,
    job: Job,
    job_dir: Path,
    on_event: EventHandler,
    grace_seconds: float = DEFAULT_GRACE_SECONDS,
    launcher: Sequence[str] = (),
) -> JobResult:
    """Run `python -m PACKAGE JOB_DIR` and wait for its end.

    However this function is left, by return, by exception or with the process that called it, no process of
    the stage is alive `grace_seconds` + 5 s later.

    Args:
        package: the stage's package, whose `__main__` calls `run_job`.
        job: what to do.
        job_dir: folder of the job; made when absent, an earlier attempt's files are cleared.
        on_event: gets each progress event in order; an `Exception` that it raises is logged and forgotten.
        grace_seconds: time between SIGTERM and SIGKILL.
        launcher: command that starts the stage's command, as `accelerate launch --no_python ...`.

    Returns:
        How the stage ended. A child that leaves no `result.json` has failed.

    Raises:
        UserError: when the disk is too full for the job's files.
        StageFailed: when an earlier attempt in the same `job_dir` does not end.
    """
    job_dir = job_dir.absolute()
    with _full_disk_explained(job_dir):
        job_dir.mkdir(parents=True, exist_ok=True)
        (job_dir / LOCK).touch()
    with _sole_attempt(job_dir, job.stage, grace_seconds) as lock:
        with _full_disk_explained(job_dir):
            _write_job(job, job_dir)
        oom_kills_before = oom_kills()
        command = [*launcher, sys.executable, "-P", "-m", package, str(job_dir)]
        environment = child_environment(launched=bool(launcher))
        guardian = _start_guardian(command, environment, job_dir / OUTPUT, lock, grace_seconds)
        ending = _supervise(guardian, ProgressRelay(job_dir / PROGRESS, on_event), grace_seconds)
    return read_result(job_dir, ending, oom_killed=oom_kills() > oom_kills_before)


def end_with_worker() -> None:
    """Have SIGTERM end this flow when the Prefect worker that started it dies; call it first in a flow.

    A flow whose worker is gone cannot be cancelled any more and keeps the GPU that the next worker hands out again. A
    flow that no worker started is left alone: its parent is a shell.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        end_with_parent()


def raise_for(result: JobResult, stage: str, log_path: Path) -> None:
    """Turn the result of a stage that did not complete into its error.

    Raises:
        UserError: with all problems, when the input was wrong.
        StageFailed: for every other end but `completed`.
    """
    match result.status:
        case JobStatus.COMPLETED:
            return
        case JobStatus.WRONG_INPUT:
            raise UserError([Problem(problem.what, problem.where, problem.fix) for problem in result.problems])
    raise StageFailed(stage, result.status.value, result.detail, str(log_path))


class ProgressRelay:
    """Hands the whole lines of a growing file on, each once."""

    def __init__(self, path: Path, on_event: EventHandler) -> None:
        """Start at the file's beginning; it need not exist yet."""
        self._path, self._on_event = path, on_event
        self._offset_bytes = 0
        self._complained: set[type[Exception]] = set()

    def forward(self) -> None:
        """Relay what was written since the last call; a last line without its newline waits for the rest."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset_bytes)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset_bytes += len(line)
                self._relay(line)

    def _relay(self, line: bytes) -> None:
        # Progress is for people: a tracking server that is away must never end a training of hours.
        try:
            self._on_event(ProgressEvent.model_validate_json(line))
        except Exception as error:
            if type(error) not in self._complained:
                self._complained.add(type(error))
                logger.warning("progress is not relayed (said once for this kind): %s: %s", type(error).__name__, error)


@contextmanager
def _sole_attempt(job_dir: Path, stage: str, grace_seconds: float) -> Iterator[IO[str]]:
    """Hold the lock of the job's folder.

    The guardian holds it too, until the last process is gone: when a flow is killed and run again at once, the new
    stage waits here until the old one has written its last checkpoint.
    """
    deadline = time.monotonic() + grace_seconds + KILL_SECONDS + SLACK_SECONDS
    with (job_dir / LOCK).open("w") as stream:
        while not _locked(stream):
            if time.monotonic() > deadline:
                raise StageFailed(stage, JobStatus.FAILED, f"another run of it is still using {job_dir}")
            time.sleep(POLL_SECONDS)
        yield stream


def _locked(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError([disk_full(path)]) from error
        raise


def _write_job(job: Job, job_dir: Path) -> None:
    for stale in (RESULT, STARVED_RANK, PROGRESS):
        (job_dir / stale).unlink(missing_ok=True)
    with (job_dir / RESERVE).open("wb") as reserve:
        os.posix_fallocate(reserve.fileno(), 0, RESERVE_BYTES)
    write_whole(job_dir / JOB, job.model_dump_json(indent=1))


def _start_guardian(
    command: Sequence[str], environment: Mapping[str, str], output: Path, lock: IO[str], grace_seconds: float
) -> subprocess.Popen[bytes]:
    # The output is a file: a child that inherits the flow's stdout keeps a killed flow RUNNING in Prefect for ever.
    with output.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.guardian", str(grace_seconds), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            env=environment,
        )


def _supervise(guardian: subprocess.Popen[bytes], relay: ProgressRelay, grace_seconds: float) -> Ending:
    record = ProcessRecord(guardian.pid)
    try:
        while guardian.poll() is None:
            relay.forward()
            record.refresh()
            time.sleep(POLL_SECONDS)
    finally:  # an interrupt of any kind as well; a second one leaves the rest to the guardian
        ending = _let_go(guardian, record, grace_seconds)
    relay.forward()
    return ending


def _let_go(guardian: subprocess.Popen[bytes], record: ProcessRecord, grace_seconds: float) -> Ending:
    assert guardian.stdin is not None and guardian.stdout is not None
    guardian.stdin.close()
    try:
        guardian.wait(grace_seconds + KILL_SECONDS + SLACK_SECONDS)
    except subprocess.TimeoutExpired:
        guardian.kill()
    ending = Ending.from_json(guardian.stdout.read().decode())
    survivors = ending.survivors if guardian.wait() == 0 else record.clear_up(grace_seconds)
    _check_gone(survivors, record)
    return ending


def _check_gone(survivors: Sequence[int], record: ProcessRecord) -> None:
    if survivors:
        logger.error("processes %s outlive SIGKILL: they hang inside the kernel", list(survivors))
    holders = gpu_memory_holders(record.pids)
    if holders:
        logger.error("the stage has ended, but its processes still hold GPU memory: %s", holders)
    elif holders is not None:
        logger.info("the stage has ended and holds no GPU memory (%d processes checked)", len(record.pids))
