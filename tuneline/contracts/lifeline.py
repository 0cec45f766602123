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
    threading.Thread(
        target=_exit_after, args=(end_of_supervisor, grace_seconds), name="supervisor-watch", daemon=True
    ).start()


def _exit_after(end_of_supervisor: int, grace_seconds: float) -> None:
    waiting = select.poll()  # select.select() refuses descriptors above 1023
    waiting.register(end_of_supervisor, select.POLLIN)
    waiting.poll()
    time.sleep(grace_seconds)
    os._exit(ExitCode.FAILED)
