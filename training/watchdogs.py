"""Trainings that go wrong: a loss that is no number, a lasting spike, an exploding gradient.

One noisy batch is none of these: a spike must stand out from the noise of the steps before it and last for
`LASTING_STEPS` logged steps, and even then `training.watchdogs: warn` lets it pass. What the batches held is kept.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.metrics import StepMetrics
from tuneline.contracts.jobs import JobInterrupted, JobStatus

WINDOW_STEPS = 100
"""Logged steps whose noise a new one is held against."""
LEAST_STEPS = 20
"""Logged steps before which nothing is known of the noise."""
DEVIATIONS = 10.0
"""Robust standard deviations (1.4826 times the median absolute deviation) above the median."""
LEAST_RISE_NATS = 1.0
"""A loss that nears 0 has a noise near 0, above which any hard batch stands far: a spike is a nat at least."""
LEAST_GRADIENT_RATIO = 10.0
"""Times the median norm: below it, clipping does its work."""
LASTING_STEPS = 3
SUSPECTS = "suspect_rows.jsonl"
"""In the work folder: the rows that were read when a watchdog barked."""

RowIds = Callable[[int, int], Sequence[str]]
"""Gives the ids of the rows read after one optimizer step up to the end of another."""


def stands_out(value: float, before: Sequence[float], least: float) -> bool:
    """Whether a value lies above the noise of those before it, and above `least`; never when they are few."""
    if len(before) < LEAST_STEPS:
        return False
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(one - median) for one in before)
    return value > max(least, median + DEVIATIONS * deviation)


class Noise:
    """The last values that did not stand out, and how many have done so in a row."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._calm: deque[float] = deque(maxlen=WINDOW_STEPS)
        self.outstanding = 0

    def lasts(self, value: float, least: Callable[[float], float]) -> bool:
        """Take in a value; whether it and those before it have stood out for `LASTING_STEPS`.

        Args:
            value: of a logged step.
            least: maps the median of the calm values to what a spike must exceed.
        """
        if self._calm and stands_out(value, self._calm, least(statistics.median(self._calm))):
            self.outstanding += 1
        else:
            self.outstanding = 0
            self._calm.append(value)
        return self.outstanding >= LASTING_STEPS


class Watchdogs(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Looks at every logged step; all ranks see the same figures and decide alike."""

    def __init__(self, folder: Path, row_ids: RowIds, history: Sequence[StepMetrics], *, stop: bool) -> None:
        """Watch a training.

        Args:
            folder: gets `SUSPECTS`.
            row_ids: names the rows of some steps.
            history: what earlier attempts logged.
            stop: whether a lasting spike or explosion ends the training; else it is told and passed over.
        """
        self._folder, self._row_ids, self._stop = folder, row_ids, stop
        self._loss, self._norm = Noise(), Noise()
        self._last_step = 0
        for row in history:
            self._findings(row.loss, row.grad_norm)
            self._last_step = row.step

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, Any], **___: Any
    ) -> None:
        """Hold the figures against those before.

        Raises:
            JobInterrupted: the training diverges.
        """
        if "loss" not in logs:  # the summary at the end of a training
            return
        loss, norm, step = float(logs["loss"]), float(logs["grad_norm"]), state.global_step
        first, self._last_step = self._last_step + 1, step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            found = f"loss {loss}, gradient norm {norm} at step {step}"
        elif not (found := self._findings(loss, norm)):
            return
        else:
            found = f"{found} at step {step}"
        first = max(1, first - (LASTING_STEPS - 1) * (step - first + 1))
        where = self._write_suspects(state, first, step, found)
        if self._stop or not math.isfinite(loss + norm):
            advice = (
                f"the rows of steps {first} to {step} are in {where}: look at them, or lower training.learning_rate"
            )
            raise JobInterrupted(JobStatus.DIVERGED, f"{found}; {advice}", step, state.max_steps)
        print(f"{found}; the rows are in {where}; training.watchdogs is `warn`: going on", flush=True)

    def _findings(self, loss: float, norm: float) -> str:
        spike = self._loss.lasts(loss, lambda median: median + LEAST_RISE_NATS)
        explosion = self._norm.lasts(norm, lambda median: median * LEAST_GRADIENT_RATIO)
        found = [f"the loss stays at {loss:.3g}, far above what it was"] if spike else []
        found += [f"the gradient norm stays at {norm:.3g}, far above what it was"] if explosion else []
        return " and ".join(found)

    def _write_suspects(self, state: TrainerState, first: int, last: int, why: str) -> Path:
        path = self._folder / SUSPECTS
        if state.is_world_process_zero:
            with path.open("a", encoding="utf-8") as stream:
                for step in range(first, last + 1):
                    line = {"step": step, "why": why, "row_ids": list(self._row_ids(step - 1, step))}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        return path
