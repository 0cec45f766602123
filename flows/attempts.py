"""A training in as many attempts as its memory needs: each time it runs out, the next rung of the ladder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flows.progress import Listener, say
from tuneline.contracts.artifacts import Plan, PreparedData, Record
from tuneline.contracts.errors import StageFailed
from tuneline.contracts.jobs import LOADING, JobStatus, ProgressEvent
from tuneline.contracts.ladder import Ladder, read_ladder, write_ladder
from tuneline.contracts.spec import RunSpec
from tuneline.planning.ladder import describe_rung, exhausted, next_rung

R = TypeVar("R", bound=Record)
Attempt = Callable[[Listener], R]
OnRung = Callable[[Ladder], None]
NOT_LOADED = (
    "memory ran out before the first step, while the base was being loaded: no smaller micro-batch helps. "
    "Set adapter.method to qlora, or use a device with more memory"
)
logger = logging.getLogger("tuneline.ladder")


@dataclass(frozen=True)
class Training:
    """What the ladder decides by."""

    spec: RunSpec
    plan: Plan
    data: PreparedData


def train_in_memory(training: Training, work: Path, attempt: Attempt[R], on_rung: OnRung) -> R:
    """Run attempts until one does not run out of memory; each goes on from the newest whole checkpoint in `work`.

    Args:
        training: config, plan and data.
        work: folder of the training; it keeps the rungs, so that a later run starts on the last one.
        attempt: trains; tells its listener how far it is.
        on_rung: told the whole ladder after each new rung.

    Raises:
        StageFailed: when the last rung does not suffice, with all that was tried; and for every other failure.
    """
    while True:
        reached = Reached()
        try:
            return attempt(reached)
        except StageFailed as error:
            if error.status != JobStatus.OUT_OF_MEMORY:
                raise
            if not reached.steps:
                detail = f"{error.detail}; {NOT_LOADED}"
                raise StageFailed(error.stage, error.status, detail, error.log) from error
            on_rung(_climb(training, work, reached.step, error))


class Reached:
    """A listener that remembers how far a training came."""

    def __init__(self) -> None:
        self.step, self.steps = 0, False

    def __call__(self, event: ProgressEvent) -> None:
        """Note the event's step; from the first event after loading on, steps are under way."""
        self.step, self.steps = event.done, self.steps or event.note != LOADING


def _climb(training: Training, work: Path, step: int, error: StageFailed) -> Ladder:
    ladder = read_ladder(work)
    rung = next_rung(training.spec, training.plan, ladder, step, error.detail)
    if rung is None:
        detail = exhausted(training.spec, training.plan, training.data, ladder, step)
        raise StageFailed(error.stage, error.status, f"{error.detail}; {detail}", error.log) from error
    ladder = Ladder(rungs=(*ladder.rungs, rung))
    write_ladder(work, ladder)
    words = f"{error.stage}: out of memory after step {step}, going on with {describe_rung(training.plan, ladder)}"
    logger.warning("%s (%s)", words, error.detail)
    say(words)
    return ladder
