"""`metrics.jsonl`: one line for each logged optimizer step; a resumed training continues it without doubling a step."""

from collections.abc import Mapping
from pathlib import Path

from tuneline.contracts.artifacts import Record
from tuneline.contracts.store import write_whole


class StepMetrics(Record):
    """A logged optimizer step."""

    step: int
    loss: float
    """Mean since the last logged step, in nats per learned token."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Read since the training began, prompts included."""
    tokens_per_second: float
    seconds: float
    """Since the training began, without the time between an interruption and its resumption."""
    seconds_left: float
    """At the mean speed of this attempt."""
    peak_memory_bytes: int
    """Of the process (CPU) or of what torch allocated on the GPU, so far."""
    share_of_peak_4n: float | None = None
    """Of the GPUs' dense peak (MFU), 4N operations a token: an adapter, whose base needs no weight gradients."""
    share_of_peak_6n: float | None = None
    """The same for a full training; both are None on a CPU, whose peak nobody states."""
    held_out_loss: float | None = None
    """Where it was measured at this step."""
    reward_chosen: float | None = None
    """Under a preference objective: mean log-ratio to the reference of the better answers, times beta."""
    reward_rejected: float | None = None
    reward_margin: float | None = None
    """Mean of the one less the other."""
    reward_accuracy: float | None = None
    """Share of the pairs whose margin is positive."""
    divergence: float | None = None
    """KTO's estimate of the divergence from the reference, in nats."""

    @property
    def figures(self) -> dict[str, float]:
        """All that was measured at the step, by name."""
        return self.model_dump(exclude={"step"}, exclude_none=True)


LOGGED = {
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "kl": "divergence",
}
"""What TRL's preference trainers log, and the fields it goes to."""


def preference_figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Pick out what a preference objective logs beside the loss."""
    return {field: logs[name] for name, field in LOGGED.items() if name in logs}


def append(path: Path, row: StepMetrics) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(row.model_dump_json(exclude_none=True) + "\n")


def read(path: Path) -> list[StepMetrics]:
    """Read the whole lines; the last one may be torn by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [StepMetrics.model_validate_json(line) for line in lines if line.endswith("\n")]


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    kept = [row.model_dump_json(exclude_none=True) + "\n" for row in read(path) if row.step <= step]
    write_whole(path, "".join(kept))
