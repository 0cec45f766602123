"""Errors that teach: what is wrong, where, and what to do, all at once.

`UserError` is for what a user can mend (exit code 2). `StageFailed` is for a stage that ended badly although its
input was right (exit code 1, or 5 when it was pre-empted). Our own bugs stay `AssertionError`s with a traceback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """What a `tuneline` command's exit status says."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    REJECTED = 3
    INCONCLUSIVE = 4
    PREEMPTED = 5


@dataclass(frozen=True)
class Problem:
    """One thing to mend: `what` is wrong, `where` it is (file, line, key, row), and the `fix`."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """Render as `where: what`, with the fix on a line of its own."""
        located = f"{self.where}: {self.what}" if self.where else self.what
        return f"{located}\n    {self.fix}" if self.fix else located


class TunelineError(Exception):
    """Base of the errors that a command line prints without a traceback."""

    exit_code: ExitCode = ExitCode.FAILED


class UserError(TunelineError):
    """Input that cannot be used; holds every problem found, not only the first."""

    exit_code = ExitCode.WRONG_INPUT

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Keep the problems; there is at least one."""
        assert problems, "a UserError needs at least one problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, what: str, where: str = "", fix: str = "") -> Self:
        """Build the error of a single problem."""
        return cls([Problem(what, where, fix)])


class ServiceUnavailable(UserError):
    """A service that the run needs (MLflow, Prefect, Docker) does not answer at the address that settings name."""


class StageFailed(TunelineError):
    """A stage ended without its artifact: `status` says how, `log` where its last words are."""

    def __init__(self, stage: str, status: str, detail: str, log: str = "") -> None:
        """Name the stage, the status of its job and the reason."""
        self.stage, self.status, self.detail, self.log = stage, status, detail, log
        if status == "preempted":
            self.exit_code = ExitCode.PREEMPTED
        tail = f"\n    full log: {log}" if log else ""
        super().__init__(f"{stage} {status}: {detail}{tail}")
