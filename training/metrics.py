"""`metrics.jsonl`: one line for each logged optimizer step; a resumed training continues it without doubling a step."""

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


def append(path: Path, row: StepMetrics) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(row.model_dump_json() + "\n")


def read(path: Path) -> list[StepMetrics]:
    """Read the whole lines; the last one may be torn by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [StepMetrics.model_validate_json(line) for line in lines if line.endswith("\n")]


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    kept = [row.model_dump_json() + "\n" for row in read(path) if row.step <= step]
    write_whole(path, "".join(kept))
