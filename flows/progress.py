"""How far a run is, shown where people look: a bar in the terminal, an artifact in Prefect's UI."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from tuneline.contracts.jobs import ProgressEvent

TERMINAL = "TUNELINE_TERMINAL"
"""Set by the command line: a person watches this process's terminal."""
UI_SECONDS = 5.0
"""Least time between two updates of a Prefect artifact: each is a request and a row in its database."""
PLAIN_SECONDS = 15.0
"""Least time between two lines where output is no terminal."""

Listener = Callable[[ProgressEvent], None]
logger = logging.getLogger("tuneline.progress")


@contextmanager
def shown(stage: str) -> Iterator[Listener]:
    """Show a stage's progress events while the block runs."""
    if TERMINAL not in os.environ:
        yield _prefect_artifact(stage)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(stage, console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=None, note="starting")

        def listen(event: ProgressEvent) -> None:
            bar.update(task, completed=event.done, total=event.planned or None, note=describe(event))

        yield listen


def event_of(listener: Listener) -> Callable[[int, int, str], None]:
    """Adapt a listener to code that reports `(done, total, what)`."""
    return lambda done, total, what: listener(ProgressEvent(done=done, planned=total, unit="", note=what))


def describe(event: ProgressEvent) -> str:
    """Write an event's note and figures in a few words."""
    figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in event.metrics.items()]
    return ", ".join([event.note, *figures] if event.note else figures) or event.unit


def _plain_lines(stage: str, console: Console) -> Listener:
    last = 0.0

    def listen(event: ProgressEvent) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            done = f"{event.done}/{event.planned}" if event.planned else f"{event.done}"
            line = f"{stage}: {done} {event.unit}, {describe(event)}"
            console.print(line, highlight=False, soft_wrap=True)

    return listen


def _prefect_artifact(stage: str) -> Listener:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    artifact: UUID | None = None
    last = 0.0

    def listen(event: ProgressEvent) -> None:
        nonlocal artifact, last
        percent = 100.0 * event.done / max(1, event.planned)
        if artifact is None:
            artifact = create_progress_artifact(percent, key=f"{stage}-progress", description=describe(event))  # type: ignore[assignment]
        elif time.monotonic() - last >= UI_SECONDS or event.done == event.planned:
            update_progress_artifact(artifact, percent, description=describe(event))
        else:
            return
        last = time.monotonic()
        planned = event.planned or "?"
        logger.info("%s: %d/%s %s, %s", stage, event.done, planned, event.unit, describe(event))

    return listen
