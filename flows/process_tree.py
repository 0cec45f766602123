"""What the flow itself knows about a stage's processes: who was seen, who is left, who holds GPU memory."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Set

import psutil

from flows.guardian import KILL_SECONDS
from tuneline.contracts.lifeline import SUPERVISOR_PID

REFRESH_SECONDS = 2.0
"""Distance between two looks at the tree; one costs some 10 ms on a machine with 500 processes."""
WAIT_TICK_SECONDS = 0.1
NVIDIA_SMI_SECONDS = 20.0


class ProcessRecord:
    """The processes of one stage, as far as its flow has seen them.

    `psutil.Process` is a pid with its start time: equality, liveness and signals are safe against a reused pid.
    """

    def __init__(self, guardian_pid: int) -> None:
        """Watch the guardian and its descendants."""
        self._guardian_pid = guardian_pid
        self._seen = {psutil.Process(guardian_pid)}
        self._next_look = 0.0

    @property
    def pids(self) -> Set[int]:
        """All that were ever seen."""
        return {process.pid for process in self._seen}

    def refresh(self) -> None:
        """Look for new descendants when it is time to."""
        if time.monotonic() >= self._next_look:
            self._see_descendants()
            self._next_look = time.monotonic() + REFRESH_SECONDS

    def clear_up(self, grace_seconds: float) -> list[int]:
        """End a stage whose guardian was killed: wait the grace, then kill; interrupted, kill at once.

        Returns:
            The pids that are left.
        """
        try:
            self._wait(grace_seconds)
        finally:
            for process in self._living():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    process.kill()
        return self._wait(KILL_SECONDS)

    def _wait(self, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        while (living := self._living()) and time.monotonic() < deadline:
            time.sleep(WAIT_TICK_SECONDS)
        return [process.pid for process in living]

    def _living(self) -> list[psutil.Process]:
        self._see_descendants()
        self._seen.update(_marked(self._guardian_pid))
        return [process for process in self._seen if _lives(process)]

    def _see_descendants(self) -> None:
        for process in [known for known in self._seen if _lives(known)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.update(process.children(recursive=True))


def _marked(guardian_pid: int) -> Iterator[psutil.Process]:
    """Find processes by the variable that a guardian gives its child and all inherit.

    It finds what was started since the last look and has no parent left to be found by.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # other users' processes are not ours
            if process.environ().get(SUPERVISOR_PID) == str(guardian_pid):
                yield process


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gpu_memory_holders(pids: Set[int]) -> dict[int, str] | None:
    """Ask `nvidia-smi` which of these processes still hold GPU memory.

    In a container with pids of its own the driver knows processes by the host's pids, and none is found.

    Returns:
        The memory, as it is printed, of each holder; None on a machine without a GPU driver that answers.
    """
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    query = [nvidia_smi, "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_SECONDS).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    rows = [line.split(",", 1) for line in answer.splitlines() if "," in line]
    return {int(pid): memory.strip() for pid, memory in rows if pid.strip().isdigit() and int(pid) in pids}
