"""How a stage's child ended, in a user's words."""

import os
import signal
from pathlib import Path

from pydantic import ValidationError

from flows.guardian import Ending
from tuneline.contracts.jobs import OUTPUT, RESULT, STARVED_RANK, JobResult, JobStatus

TAIL_BYTES, TAIL_LINES = 8 << 10, 12
SIGNAL_HINTS = {
    signal.SIGKILL: "often the kernel's out-of-memory killer",
    signal.SIGSEGV: "a crash inside a native library",
    signal.SIGBUS: "often a full /dev/shm",
}


def read_result(job_dir: Path, ending: Ending, *, oom_killed: bool = False) -> JobResult:
    """Read `result.json`; without it the stage failed, and the detail gives status or signal and the last output.

    A stage of several processes fails in all of them when memory runs out in one, which need not be the one that
    writes the result.

    Args:
        job_dir: folder of the job.
        ending: how the child's process ended.
        oom_killed: whether the kernel's out-of-memory killer struck meanwhile.
    """
    result = _read(job_dir / RESULT) or JobResult(status=JobStatus.FAILED, detail=_describe(ending, job_dir / OUTPUT))
    if result.status in (JobStatus.COMPLETED, JobStatus.OUT_OF_MEMORY, JobStatus.WRONG_INPUT):
        return result
    if starved := _read(job_dir / STARVED_RANK):
        return starved
    if oom_killed and result.status is JobStatus.FAILED:
        detail = f"killed by the kernel's out-of-memory killer; {result.detail}"
        return JobResult(status=JobStatus.OUT_OF_MEMORY, detail=detail)
    return result


def _read(path: Path) -> JobResult | None:
    try:
        return JobResult.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        return JobResult(status=JobStatus.FAILED, detail=f"{path.name} cannot be read: {error}")


def _describe(ending: Ending, output: Path) -> str:
    match ending.returncode:
        case None:
            how = "the process that guards it was killed"
        case 0:
            how = f"ended with exit status 0 but wrote no {RESULT}"
        case status if status > 0:
            how = f"ended with exit status {status}"
        case status:
            how = _describe_signal(-status)
    tail = _tail(output)
    return f"{how}; its last output:\n{tail}" if tail else how


def _describe_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"ended by signal {number}"
    hint = SIGNAL_HINTS.get(signal.Signals(number))
    return f"ended by signal {number} ({name}; {hint})" if hint else f"ended by signal {number} ({name})"


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        size_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size_bytes - TAIL_BYTES))
        lines = stream.read().decode("utf-8", errors="replace").rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:])
