"""A stage for tests of the supervisor: `options["act"]` says how it behaves."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.jobs import Job, JobInterrupted, JobStatus, ProgressEvent, Reporter, run_job

FOREVER_SECONDS = 600
DEAF_SCRIPT = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    f"time.sleep({FOREVER_SECONDS})"
)


class Counted(Record):
    """What the stage makes."""

    events: int


def run(job: Job, report: Reporter) -> Record:
    """Act as the job says."""
    return ACTS[job.options["act"]](job, report)


def count(job: Job, report: Reporter) -> Record:
    """Report as many events as asked, as fast as possible."""
    events = int(job.options["events"])
    for done in range(events):
        report(ProgressEvent(done=done, planned=events, unit="step"))
    return Counted(events=events)


def noise(job: Job, report: Reporter) -> Record:
    """Print 10 MB on each stream."""
    for stream in (sys.stdout, sys.stderr):
        for _ in range(10_000):
            stream.write("x" * 999 + "\n")
    return Counted(events=0)


def environment(job: Job, report: Reporter) -> Record:
    """Print what the child was given."""
    print(f"cwd={Path.cwd()}")
    for name in ("DO_NOT_TRACK", "PYTHONUNBUFFERED", "OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        print(f"{name}={os.environ.get(name)}")
    print(f"stdin={Path('/proc/self/fd/0').readlink()}")
    return Counted(events=0)


def vanish(job: Job, report: Reporter) -> Record:
    """Leave without a result, with exit status 0."""
    print("so long", flush=True)
    os._exit(0)


def kill_itself(job: Job, report: Reporter) -> Record:
    """End as the out-of-memory killer ends a process."""
    print("allocating", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def wrong_input(job: Job, report: Reporter) -> Record:
    """Find two mistakes."""
    raise UserError([Problem("row has no answer", "data.csv:3", "fill it"), Problem("row is empty", "data.csv:9")])


def fill_disk(job: Job, report: Reporter) -> Record:
    """Write to `out_dir` until the file system is full."""
    with job.out_dir.joinpath("big").open("wb") as stream:
        while True:
            stream.write(b"\0" * (1 << 16))


def hoard(job: Job, report: Reporter) -> Record:
    """Take memory without end."""
    hoarded = []
    while True:
        hoarded.append(bytearray(b"x" * (16 << 20)))


def no_space(job: Job, report: Reporter) -> Record:
    """Fail as on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def look(job: Job, report: Reporter) -> Record:
    """Count the checkpoints of an earlier attempt."""
    return Counted(events=len(list(job.out_dir.glob("checkpoint"))))


def checkpoint_on_sigterm(job: Job, report: Reporter, seconds: float = 0.3) -> Record:
    """Work until SIGTERM, then take some time to write a checkpoint, and say so."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    report(ProgressEvent(done=0, planned=1, unit="step"))
    while not stopped:
        time.sleep(0.02)
    time.sleep(seconds)
    job.out_dir.joinpath("checkpoint").write_text(f"{len(stopped)} SIGTERM")
    raise JobInterrupted(JobStatus.PREEMPTED, "told to stop", 3, 9)


def checkpoint_late(job: Job, report: Reporter) -> Record:
    """Take longer for the checkpoint than another flow takes to start."""
    return checkpoint_on_sigterm(job, report, seconds=4.0)


def deaf(job: Job, report: Reporter) -> Record:
    """Work on through SIGTERM, noting that it came."""
    signal.signal(signal.SIGTERM, lambda number, frame: job.out_dir.joinpath("told").touch())
    report(ProgressEvent(done=0, planned=1, unit="step"))
    while True:
        time.sleep(FOREVER_SECONDS)


def stubborn(job: Job, report: Reporter) -> Record:
    """Be deaf, with a child in a session of its own that is deaf too, and another that has lost its parent."""
    deaf_child = [sys.executable, "-c", DEAF_SCRIPT]
    ready = subprocess.Popen(deaf_child, start_new_session=True, stdout=subprocess.PIPE)
    orphan_maker = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    subprocess.run([sys.executable, "-c", orphan_maker, *deaf_child], check=True)
    assert ready.stdout is not None
    ready.stdout.readline()
    return deaf(job, report)


def leave_behind(job: Job, report: Reporter) -> Record:
    """Complete, and leave a process in another session that ignores SIGTERM."""
    left = subprocess.Popen([sys.executable, "-c", DEAF_SCRIPT], start_new_session=True, stdout=subprocess.PIPE)
    assert left.stdout is not None
    left.stdout.readline()
    job.out_dir.joinpath("left_pid").write_text(str(left.pid))
    return Counted(events=0)


ACTS = {
    act.__name__: act
    for act in (
        count,
        noise,
        environment,
        vanish,
        kill_itself,
        wrong_input,
        fill_disk,
        hoard,
        no_space,
        look,
        checkpoint_on_sigterm,
        checkpoint_late,
        deaf,
        stubborn,
        leave_behind,
    )
}

if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:], run))
