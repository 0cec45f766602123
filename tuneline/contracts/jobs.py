"""The folder through which a flow and a stage's child process talk.

    JOB_DIR/job.json        what to do: the stage, the config, where its inputs are, where to write
    JOB_DIR/progress.jsonl  one `ProgressEvent` a line, appended while the stage runs
    JOB_DIR/output.log      whatever the child and its libraries print
    JOB_DIR/result.json     how it ended, written last; without it the stage failed, whatever the exit status was

A child is started as `python -m PACKAGE JOB_DIR`. It dies with the process that supervises it.
"""

import errno
import os
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import ExitCode, Problem, UserError
from tuneline.contracts.lifeline import die_with_supervisor
from tuneline.contracts.settings import switch_telemetry_off
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import write_whole

JOB, PROGRESS, OUTPUT, RESULT = "job.json", "progress.jsonl", "output.log", "result.json"
STARVED_RANK = "starved_rank.json"
"""The result of a rank other than 0 that ran out of memory."""
RESERVE = "reserve"
"""A file of a few blocks that the supervisor writes and the child gives back: a full disk can still be reported."""
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "out of memory", "_ALLOC_FAILED", "std::bad_alloc")
"""torch 2.13's allocator for CPUs; CUDA; the likes of `CUBLAS_STATUS_ALLOC_FAILED`; C++."""
LOADING = "loading"
"""Note of a stage's first event, before it holds its model."""


class JobStatus(StrEnum):
    """How a stage ended."""

    COMPLETED = "completed"
    PREEMPTED = "preempted"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    WRONG_INPUT = "wrong_input"
    FAILED = "failed"


class Job(Record):
    """What a child is asked to do."""

    stage: str
    spec: RunSpec
    inputs: dict[str, Path]
    """Artifact folders by name, as `prepared` or `plan`."""
    out_dir: Path
    options: dict[str, str] = Field(default_factory=dict)
    """Facts of the machine that the stage needs and that are no part of its identity."""


class ProgressEvent(Record):
    """How far a stage is."""

    done: int
    planned: int
    unit: str
    note: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


class StatedProblem(Record):
    """A `Problem` as it is written to `result.json`."""

    what: str
    where: str
    fix: str


class JobResult(Record):
    """How a child ended."""

    status: JobStatus
    detail: str = ""
    steps_done: int = 0
    steps_planned: int = 0
    artifact: dict[str, object] | None = None
    problems: tuple[StatedProblem, ...] = ()


class JobInterrupted(Exception):
    """Raised by a stage that stops before its end: pre-empted, diverged or out of memory."""

    def __init__(self, status: JobStatus, detail: str, steps_done: int = 0, steps_planned: int = 0) -> None:
        """Say how the stage ended and how far it came."""
        self.result = JobResult(status=status, detail=detail, steps_done=steps_done, steps_planned=steps_planned)
        super().__init__(detail)


Reporter = Callable[[ProgressEvent], None]
StageFunction = Callable[[Job, Reporter], Record]


def run_job(arguments: Sequence[str], stage: StageFunction) -> int:
    """Run a stage in this process and write how it ended.

    Args:
        arguments: the command line after the program's name: the job's folder.
        stage: maps a job to its artifact's record.

    Returns:
        The exit status.
    """
    die_with_supervisor()
    switch_telemetry_off()
    job_dir = Path(arguments[0])
    job = Job.model_validate_json((job_dir / JOB).read_text(encoding="utf-8"))
    result = _result_of(stage, job, file_reporter(job_dir / PROGRESS))
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0 and result.status is JobStatus.OUT_OF_MEMORY:
        # The others wait for this rank until they are ended, and none of them knows why.
        write_whole(job_dir / STARVED_RANK, result.model_dump_json(indent=1))
    if rank == 0:  # under torchrun one rank speaks for all
        (job_dir / RESERVE).unlink(missing_ok=True)
        write_whole(job_dir / RESULT, result.model_dump_json(indent=1))
    return ExitCode.DONE if result.status is JobStatus.COMPLETED else ExitCode.FAILED


def file_reporter(path: Path) -> Reporter:
    """Return a reporter that appends events to a file, a line each."""

    def report(event: ProgressEvent) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(event.model_dump_json() + "\n")

    return report


def _result_of(stage: StageFunction, job: Job, report: Reporter) -> JobResult:
    try:
        record = stage(job, report)
    except JobInterrupted as stop:
        return stop.result
    except UserError as error:
        return _wrong_input(error.problems)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return JobResult(status=_status_of(error), detail=f"{type(error).__name__}: {error}")
        return _wrong_input([disk_full(job.out_dir)])
    except Exception as error:  # the boundary of the process: reported in result.json, traceback in output.log
        traceback.print_exc()
        return JobResult(status=_status_of(error), detail=f"{type(error).__name__}: {error}")
    return JobResult(status=JobStatus.COMPLETED, artifact=record.model_dump(mode="json"))


def _status_of(error: Exception) -> JobStatus:
    return JobStatus.OUT_OF_MEMORY if is_out_of_memory(error) else JobStatus.FAILED


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an allocation failed; torch's allocator for CPUs, and cuBLAS, say so in a plain `RuntimeError`."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def disk_full(path: Path) -> Problem:
    """Describe a full disk."""
    return Problem(
        "the disk is full", str(path), "free some space, or set TUNELINE_HOME to a folder on a larger disk; run again"
    )


def _wrong_input(problems: Sequence[Problem]) -> JobResult:
    stated = tuple(StatedProblem(what=problem.what, where=problem.where, fix=problem.fix) for problem in problems)
    return JobResult(status=JobStatus.WRONG_INPUT, detail=problems[0].what, problems=stated)
