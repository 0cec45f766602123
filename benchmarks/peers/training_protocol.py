"""How the training benchmark and a contender's driver talk: one JSON task in, JSON lines out.

    driver: the first optimizer step is done -> {"event": "first"}
    driver: the training is over             -> {"event": "done", "seconds": ..., "cpu_seconds": ..., "steps": ...,
                                                 "learned_tokens": ..., "peak_bytes": ..., "first_loss": ...,
                                                 "last_loss": ..., "versions": {...}}

Standard library only: it runs in every contender's environment.
"""

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

IGNORED_LABEL = -100
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
RANK = 16
ALPHA = 32


@dataclass(frozen=True)
class TrainingTask:
    """What a contender trains, the same for all of them: LoRA on every linear module, one epoch."""

    train: str
    """JSONL file of `{"messages": [...]}` rows."""
    held_out: str
    """A second such file; only tuneline asks for one."""
    model: str
    """Folder of the model, with the tokenizer and the chat template."""
    work: str
    """Empty folder for whatever the contender writes."""
    variant: str
    """How the contender is configured; its driver knows the names."""
    cores: int
    max_length_tokens: int = 1024
    batch_rows: int = 8
    """Rows of an optimizer step: TRL's default on one device."""
    learning_rate: float = 2e-4

    def to_json(self) -> str:
        """Write the task as the driver's argument."""
        return json.dumps(asdict(self))

    @property
    def work_dir(self) -> Path:
        """The folder to write into."""
        return Path(self.work)


class TrainingDriver:
    """The driver's end of the conversation."""

    def __init__(self) -> None:
        """Read the task, keep to its cores, and keep stdout from what libraries print."""
        self.task = TrainingTask(**json.loads(sys.argv[1]))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.task.cores])
        self._channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._first_told = False

    def first(self) -> None:
        """Say that the first optimizer step is done; only the first call counts."""
        if not self._first_told:
            self._first_told = True
            self._say(event="first")

    def done(self, **facts: Any) -> None:
        """Say what came out: wall and CPU seconds of the training loop, steps, learned tokens and two losses."""
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        versions = {name: version(name) for name in LIBRARIES}
        self._say(event="done", peak_bytes=peak_bytes, versions=versions, **facts)

    def _say(self, **line: Any) -> None:
        print(json.dumps(line), file=self._channel, flush=True)


def trainer_callback(driver: TrainingDriver) -> Any:
    """Make a callback for a transformers Trainer that tells of the first step and keeps the clock."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds = cpu_seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._started, self._cpu_started = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            driver.first()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self._started
            self.cpu_seconds = time.process_time() - self._cpu_started

    return Clock()


def learned_tokens(data_set: Any) -> int:
    """Count the labels of a data set that are learned."""
    return sum(label != IGNORED_LABEL for row in data_set for label in row["labels"])


def losses(history: list[dict[str, float]]) -> dict[str, float]:
    """First and last logged loss of a Trainer's `log_history`."""
    logged = [line["loss"] for line in history if "loss" in line]
    return {"first_loss": logged[0], "last_loss": logged[-1]}
