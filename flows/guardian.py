"""The process between a flow and a stage's child: whatever dies, nothing of the stage outlives the grace.

    flow --stdin--> guardian --> launcher or stage --> ranks, data loaders, whatever they start

Two properties of Linux carry the design, so that one routine ends a stage after every kind of death:

- **The lease.** The guardian's stdin is a pipe whose other end only the flow holds. It reads end-of-file when the flow
  lets go of it, and just as well when the flow is killed. The guardian has a session of its own, so a signal to the
  flow's group (cancel, Ctrl-C, a second Ctrl-C) does not reach it.
- **The subreaper.** Descendants that lose their parent become the guardian's children, in whatever session they are. It
  therefore knows at every moment all that is left, without sampling process ids, and `waitpid` answers ECHILD
  exactly when nothing is.

To stop is: SIGTERM to the guardian's children, once each; wait the grace; SIGKILL to all descendants until ECHILD.
Only children are told, not their children: torchrun tells its ranks itself, and a data loader's worker that dies of
SIGTERM would break the checkpoint that its trainer is writing. Who loses its parent meanwhile becomes a child and is
told then.

When the guardian itself is killed, the kernel sends SIGTERM to its child, the flow notices and clears up by its own
records (`flows.process_tree`); when both are killed, each stage ends itself (`tuneline.contracts.lifeline`).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import psutil

from tuneline.contracts.lifeline import GRACE_SECONDS, SUPERVISOR_PID, adopt_orphans, signal_on_parent_death

TICK_SECONDS = 0.05
KILL_SECONDS = 4.0
"""Time that SIGKILL gets. Beyond it a process hangs inside the kernel (a dead NFS server, a wedged GPU driver)."""
NOT_STARTED = 127
"""Exit status for a command that cannot be started, as a shell's."""


@dataclass(frozen=True)
class Ending:
    """How the child ended: its exit status (negative: a signal), None while unknown, and the pids that SIGKILL left."""

    returncode: int | None
    survivors: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Write as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; empty text, from a guardian that was killed, is an unknown ending."""
        if not text:
            return cls(returncode=None)
        fields = json.loads(text)
        return cls(fields["returncode"], tuple(fields["survivors"]))


class Guardian:
    """Runs one command and leaves no process of it behind."""

    def __init__(self, command: Sequence[str], grace_seconds: float) -> None:
        """Start the command in a session of its own; its output goes to the guardian's stderr."""
        self.grace_seconds = grace_seconds
        self.returncode: int | None = None
        self._told: set[psutil.Process] = set()
        self._stop_asked = False
        signal.signal(signal.SIGTERM, self._ask_to_stop)  # a service manager signals every process of a unit
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        adopt_orphans()
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            start_new_session=True,
            preexec_fn=signal_on_parent_death,  # safe: this process has one thread
            env=os.environ | {SUPERVISOR_PID: str(os.getpid()), GRACE_SECONDS: str(grace_seconds)},
        )

    def run(self) -> Ending:
        """Wait for the child's end or the lease's, then stop what is left."""
        while self._reap() and self.returncode is None and not self._stop_asked and _lease_holds():
            pass
        self._terminate()
        self._kill()
        return Ending(self.returncode, tuple(process.pid for process in _descendants()))

    def _ask_to_stop(self, _signal: int, _frame: object) -> None:
        self._stop_asked = True

    def _reap(self) -> bool:
        """Collect the dead, adopted ones too; False when no descendant is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child.pid:
                self.returncode = self._child.returncode = os.waitstatus_to_exitcode(status)

    def _terminate(self) -> None:
        deadline = time.monotonic() + self.grace_seconds
        while self._reap() and time.monotonic() < deadline:
            for process in set(psutil.Process().children()) - self._told:
                self._told.add(process)
                _send(process, signal.SIGTERM)
            time.sleep(TICK_SECONDS)

    def _kill(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        while self._reap() and time.monotonic() < deadline:
            for process in _descendants():
                _send(process, signal.SIGKILL)
            time.sleep(TICK_SECONDS)


def _lease_holds() -> bool:
    """Wait a tick for the lease's end; nothing is ever written to it, so readable means end-of-file."""
    return not select.select([sys.stdin], [], [], TICK_SECONDS)[0]


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile; or became another user's
        process.send_signal(number)


def main(arguments: Sequence[str]) -> None:
    """Run `GRACE_SECONDS COMMAND...` and write its `Ending` to stdout, unless nobody is left to read it."""
    try:
        ending = Guardian(arguments[1:], float(arguments[0])).run()
    except OSError as error:
        print(f"cannot start {arguments[1]}: {error.strerror}", file=sys.stderr)
        ending = Ending(NOT_STARTED)
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), ending.to_json().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
