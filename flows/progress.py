"""How far a run is, shown where people look: a bar in the terminal, an artifact in Prefect's UI."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from flows.progress_words import SECONDS_LEFT, describe, done_of, fitted, in_words, is_news, line_of
from tuneline.contracts.jobs import ProgressEvent

TERMINAL = "TUNELINE_TERMINAL"
"""Set by the command line: a person watches this process's terminal."""
UI_SECONDS = 5.0
"""Least time between two updates of a Prefect artifact: each is a request and a row in its database."""
PLAIN_SECONDS = 15.0
"""Least time between two lines where output is no terminal."""
INDENT = "  "

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
    with StageBar(stage, console) as bar:
        yield bar.listen


class StageBar(Progress):
    """A bar with a line of figures below it; both vanish with the stage, and what was news stays."""

    def __init__(self, stage: str, console: Console) -> None:
        """Begin without a known end."""
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TimeLeft(),
        )
        super().__init__(*columns, console=console, transient=True)
        self._task = self.add_task(stage, total=None, done="", words="starting", ends_at=None)

    def listen(self, event: ProgressEvent) -> None:
        """Show an event."""
        if is_news(event):
            self.console.print(event.note, highlight=False, soft_wrap=True)
        left = event.metrics.get(SECONDS_LEFT)
        ends_at = None if left is None else time.monotonic() + left
        self.update(
            self._task,
            completed=event.done,
            total=event.planned or None,
            done=done_of(event),
            words=describe(event),
            ends_at=ends_at,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give Rich the bar and, below it, as many of the words as the width holds."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            words = fitted(task.fields["words"], self.console.width - len(INDENT))
            yield Text(INDENT + words, style="dim", overflow="ellipsis", no_wrap=True)


class TimeLeft(ProgressColumn):
    """The time that the stage itself expects, counting down; where it expects none, Rich's own guess.

    Rich judges by how fast the bar grew, and a resumed training's grows by half its length at once.
    """

    def render(self, task: Task) -> Text:
        """Write it."""
        ends_at = task.fields["ends_at"]
        left = task.time_remaining if ends_at is None else max(0.0, ends_at - time.monotonic())
        return Text("" if left is None else f"{in_words(left)} left", style="progress.remaining")


def say(words: str) -> None:
    """Print a line that stays, where a person watches; elsewhere the log is the place."""
    if TERMINAL in os.environ:
        Console(stderr=True).print(words, style="yellow", highlight=False, soft_wrap=True, markup=False)


def event_of(listener: Listener) -> Callable[[int, int, str], None]:
    """Adapt a listener to code that reports `(done, total, what)`."""
    return lambda done, total, what: listener(ProgressEvent(done=done, planned=total, unit="", note=what))


def _plain_lines(stage: str, console: Console) -> Listener:
    last = 0.0

    def listen(event: ProgressEvent) -> None:
        nonlocal last
        if is_news(event) or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{stage}: {line_of(event)}", highlight=False, soft_wrap=True)

    return listen


def _prefect_artifact(stage: str) -> Listener:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    artifact: UUID | None = None
    last = 0.0

    def listen(event: ProgressEvent) -> None:
        nonlocal artifact, last
        percent = 100.0 * event.done / max(1, event.planned)
        words = line_of(event)
        if artifact is None:
            artifact = create_progress_artifact(percent, key=f"{stage}-progress", description=words)  # type: ignore[assignment]
        elif is_news(event) or time.monotonic() - last >= UI_SECONDS or event.done == event.planned:
            update_progress_artifact(artifact, percent, description=words)
        else:
            return
        last = time.monotonic()
        logger.info("%s: %s", stage, words)

    return listen
