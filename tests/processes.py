"""Finding the processes of a test, whatever session or parent they have: they inherit a tag in their environment."""

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

TAG = "TUNELINE_TEST_TAG"
PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[1]


def program_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with the test programs importable, and a fresh tag."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(PROGRAMS)]),
        "OMP_NUM_THREADS": "1",
        TAG: uuid.uuid4().hex,
        **extra,
    }


def default_sigint() -> None:
    """Undo an inherited SIG_IGN (shells set it for background jobs); for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tagged(tag: str) -> list[psutil.Process]:
    """Find the living processes that carry the tag; zombies carry nothing any more."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG) == tag:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def describe(processes: list[psutil.Process]) -> str:
    """Render processes for a failed assertion."""
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return "\n".join(lines)


def eventually(condition: Callable[[], object], seconds: float, interval_seconds: float = 0.05) -> bool:
    """Poll until the condition holds; False when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_seconds)
    return True


def find(tag: str, text: str) -> psutil.Process:
    """Return the one tagged process whose command line contains the text as an argument."""
    matches = [process for process in tagged(tag) if text in process.cmdline()]
    assert len(matches) == 1, f"{text}: {describe(matches) or 'no process'}"
    return matches[0]


def kill_all(tag: str) -> None:
    """Leave nothing of a test behind, however it ended."""
    while processes := tagged(tag):
        for process in processes:
            process.kill()
        time.sleep(0.05)
