"""How a process learns that the one it works for is gone. Linux only, standard library only.

The kernel's parent-death signal reaches a process whose direct parent died. It is set by the stage itself, because
torchrun gives each rank a session of its own, out of reach of a group kill. It may be caught, so that training writes a
last checkpoint; a thread that waits for the supervisor's end therefore ends the process for good after the grace.
"""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from tuneline.contracts.errors import ExitCode

SUPERVISOR_PID = "TUNELINE_SUPERVISOR_PID"
"""Environment variable: the process whose end must end this one."""
GRACE_SECONDS = "TUNELINE_GRACE_SECONDS"
"""Environment variable: seconds between a request to stop and the end by force."""
DEFAULT_GRACE_SECONDS = 30.0

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def signal_on_parent_death() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, prctl(2) `PR_SET_PDEATHSIG`."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent() -> None:
    """Have SIGTERM end this process when its parent dies, after what it prints to was moved out of the way.

    A parent that reads its child's output leaves a broken pipe, and rich answers the first line that is printed into
    it with `SystemExit`: before the last state of a Prefect run is sent, so that the run stays RUNNING. The kernel's
    signal alone loses that race on a busy machine.
    """
    _watch(os.pidfd_open(os.getppid()), _terminate_quietly, "parent-watch")


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, prctl(2) `PR_SET_CHILD_SUBREAPER`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_supervisor() -> None:
    """Get SIGTERM when the parent dies, and be gone a grace after the supervisor's end, come what may.

    Raises:
        SystemExit: when the supervisor ended before this was called.
    """
    signal_on_parent_death()
    supervisor = os.environ.get(SUPERVISOR_PID)
    if supervisor is None:  # started by hand
        return
    try:
        end_of_supervisor = os.pidfd_open(int(supervisor))
    except ProcessLookupError:
        sys.exit(ExitCode.FAILED)
    grace_seconds = float(os.environ.get(GRACE_SECONDS, DEFAULT_GRACE_SECONDS))

    def exit_after_grace() -> None:
        time.sleep(grace_seconds)
        os._exit(ExitCode.FAILED)

    _watch(end_of_supervisor, exit_after_grace, "supervisor-watch")


def _watch(process: int, then: Callable[[], None], name: str) -> None:
    """Wait in a thread for a process's end (its pidfd), then act."""

    def wait() -> None:
        waiting = select.poll()  # select.select() refuses descriptors above 1023
        waiting.register(process, select.POLLIN)
        waiting.poll()
        then()

    threading.Thread(target=wait, name=name, daemon=True).start()


def _terminate_quietly() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, stream)
    os.kill(os.getpid(), signal.SIGTERM)
