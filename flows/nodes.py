"""A node that takes part in the training of another one: it waits for the rendezvous, joins, and ends with the job."""

import signal
import socket
import subprocess
import sys
import threading
from types import FrameType

from flows.child_environment import child_environment
from flows.guardian import Ending
from training.nodes import LOST
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.lifeline import DEFAULT_GRACE_SECONDS
from tuneline.contracts.settings import Endpoint

POLL_SECONDS = 1.0


def take_part(rendezvous: Endpoint, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> int:
    """Wait for a training at the rendezvous and take part in it, as often as the first node is lost and comes back.

    SIGTERM ends the training on all nodes as pre-empted; while there is none, it ends the waiting.

    Args:
        rendezvous: the first node's address.
        grace_seconds: time between SIGTERM and SIGKILL.

    Returns:
        The exit status: the job's, or 0 when there was none to take part in.
    """
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    while True:
        print(f"waiting for a training at {rendezvous}", flush=True)
        while not _answers(rendezvous):
            if stop.wait(POLL_SECONDS):
                return ExitCode.DONE
        status = _join(rendezvous, stop, grace_seconds)
        if stop.is_set() or status != LOST:
            return ExitCode.PREEMPTED if status == LOST else status


def _answers(rendezvous: Endpoint) -> bool:
    try:
        with socket.create_connection((rendezvous.host, rendezvous.port), timeout=POLL_SECONDS):
            return True
    except OSError:  # refused, unreachable, or a name that is not known yet
        return False


def _join(rendezvous: Endpoint, stop: threading.Event, grace_seconds: float) -> int:
    command = [sys.executable, "-P", "-m", "training", "--join", str(rendezvous)]
    guardian = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.guardian", str(grace_seconds), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=child_environment(launched=False),
    )
    assert guardian.stdin is not None and guardian.stdout is not None
    while guardian.poll() is None:
        if stop.wait(POLL_SECONDS):
            guardian.stdin.close()  # the lease: the guardian tells the node's launcher, and ends what does not end
            guardian.wait()
    ending = Ending.from_json(guardian.stdout.read().decode())
    return ExitCode.FAILED if ending.returncode is None or ending.returncode < 0 else ending.returncode
