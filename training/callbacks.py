"""What happens between optimizer steps: progress out, checkpoints sealed, SIGTERM obeyed."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import checkpoints
from training.memory import peak_memory_bytes
from training.metrics import StepMetrics, append, preference_figures
from training.ranks import any_rank
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent, Reporter


class Preemption:
    """SIGTERM during a training: remembered until the step's end, or acted on at once when no step is under way.

    A context manager, entered in the main thread: Python delivers signals to no other.
    """

    def __init__(self, planned_steps: int) -> None:
        self.requested = False
        self.in_steps = False
        self._planned_steps = planned_steps

    def __enter__(self) -> Self:
        """Take SIGTERM over."""
        self._former = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGTERM back."""
        signal.signal(signal.SIGTERM, self._former)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self.in_steps:
            raise JobInterrupted(JobStatus.PREEMPTED, "SIGTERM while loading", 0, self._planned_steps)


class StopOnPreemption(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Saves and stops at the first step boundary after SIGTERM reached any rank."""

    def __init__(self, preemption: Preemption) -> None:
        self._preemption = preemption

    def on_step_end(self, args: TrainingArguments, _: TrainerState, control: TrainerControl, **__: Any) -> None:
        """Ask for a checkpoint and the end."""
        if any_rank(self._preemption.requested, args.device, args.world_size):
            self._preemption.requested = True  # the rank that speaks for all need not be the one that was told
            control.should_save = True
            control.should_training_stop = True


@dataclass(frozen=True)
class Peak:
    """The tokens per second that all devices would train at their peak, and the field that a share of it goes to."""

    tokens_per_second: float
    field: Literal["share_of_peak_4n", "share_of_peak_6n"]


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes each logged step to the metrics file and to the flow."""

    def __init__(
        self,
        report: Reporter,
        metrics: Path,
        tokens_after_step: Sequence[int],
        seconds_before: float,
        peak: Peak | None = None,
        held_out: Callable[[int], Mapping[str, float]] = lambda _: {},
    ) -> None:
        """Write for a training that an earlier attempt has worked on for `seconds_before`.

        Args:
            report: tells the flow.
            metrics: the file.
            tokens_after_step: of all ranks; index 0 is before the first step.
            seconds_before: 0 on a fresh start.
            peak: speed of all devices together, where it is known.
            held_out: gives the held-out loss of a step at which it was measured.
        """
        self._report = report
        self._peak, self._held_out = peak, held_out
        self._metrics = metrics
        self._tokens_after_step = tokens_after_step
        self._seconds_before = seconds_before

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """Start the clock."""
        self._started = self._logged = time.monotonic()
        self._logged_step = self._first_step = state.global_step

    def on_step_end(self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the loss before every save, so that no checkpoint holds diverged weights."""
        control.should_log = control.should_log or control.should_save

    def on_log(
        self, args: TrainingArguments, state: TrainerState, _: TrainerControl, logs: dict[str, Any], **__: Any
    ) -> None:
        """Record the mean loss since the last logged step."""
        if "loss" not in logs:  # the summary at the end of a training
            return
        row = self._row(state.global_step, logs, peak_memory_bytes(args.device.type))
        if state.is_world_process_zero:
            append(self._metrics, row)
            self._report(ProgressEvent(done=row.step, planned=state.max_steps, unit="steps", metrics=row.figures))

    def _row(self, step: int, logs: dict[str, Any], memory_bytes: int) -> StepMetrics:
        now = time.monotonic()
        read = self._tokens_after_step
        rate = (read[step] - read[self._logged_step]) / max(now - self._logged, 1e-9)
        seconds_per_token = (now - self._started) / max(read[step] - read[self._first_step], 1)
        self._logged, self._logged_step = now, step
        return StepMetrics(
            step=step,
            loss=float(logs["loss"]),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=float(logs["grad_norm"]),
            tokens=read[step],
            tokens_per_second=rate,
            seconds=self.seconds,
            seconds_left=(read[-1] - read[step]) * seconds_per_token,
            peak_memory_bytes=memory_bytes,
            **({self._peak.field: rate / self._peak.tokens_per_second} if self._peak else {}),
            **self._held_out(step),
            **preference_figures(logs),
        )


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Makes each saved checkpoint count, and only then deletes older ones.

    transformers' own `save_total_limit` deletes before the new folder is known to be whole.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        progress: Progress,
        facts: Mapping[str, str],
        best_step: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Seal what is saved in `folder`; `best_step` names a checkpoint that stays beside the newest `keep`."""
        self._folder, self._keep, self._progress = folder, keep, progress
        self._facts, self._best_step = facts, best_step

    def on_save(self, _args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """Seal the checkpoint of this step, once every rank has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.seal(self._folder, state.global_step, self._progress.seconds, self._facts)
            checkpoints.prune(self._folder, self._keep, self._best_step())
