"""The held-out loss while training: measured without leaving a trace, kept on disk, and what follows from it.

Measuring draws no random number and touches no gradient, so that the weights are bit for bit those of a training that
measures nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.precision import Precision
from training.ranks import summed
from tuneline.contracts.artifacts import HeldOut, HeldOutPoint, PreparedData
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import TrainingSpec
from tuneline.contracts.store import write_whole

FILE = "held_out.jsonl"
BATCH_TOKENS = 4_096
"""Padded tokens of a forward pass, and at least one row: less than a step of training holds, gradients aside."""


@dataclass(frozen=True)
class Batch:
    """Rows of like length, padded: `input_ids`, `attention_mask` and `labels` of shape (rows, tokens)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def read_batches(prepared: Path) -> list[Batch]:
    """Read the held-out rows whose answer is wanted, longest first."""
    stored = Dataset.from_file(str(prepared / PreparedData.HELD_OUT))
    rows = [row for row in stored.select_columns(["input_ids", "labels", "desirable"]) if row["desirable"] is not False]
    rows.sort(key=lambda row: -len(row["input_ids"]))
    return [_batch(group) for group in _cut(rows)]


def _cut(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        if group and (len(group) + 1) * len(group[0]["input_ids"]) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _batch(rows: Sequence[dict[str, Any]]) -> Batch:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*value, *[filler] * (longest - len(value))] for value in values])

    ids = [row["input_ids"] for row in rows]
    ones = [[1] * len(value) for value in ids]
    return Batch(padded(ids, 0), padded(ones, 0), padded([row["labels"] for row in rows], IGNORED_LABEL))


def mean_loss(model: Any, batches: Sequence[Batch], precision: Precision, rank: int = 0, ranks: int = 1) -> float:
    """Measure the mean negative log-likelihood of the learned tokens, in nats.

    Every rank does as many forward passes as any other, since under FSDP each pass gathers weights from all.
    """
    mine = list(batches[rank::ranks])
    fillers = -(-len(batches) // ranks) - len(mine)
    total = torch.zeros(2, dtype=torch.float64)
    with (
        _undisturbed(model),
        torch.no_grad(),
        torch.autocast(precision.device, precision.autocast, enabled=precision.autocast is not None),
    ):
        for number, batch in enumerate([*mine, *batches[:fillers]]):
            figures = _nll(model, batch)
            if number < len(mine):
                total += figures
    loss, tokens = summed(total, precision.device, ranks).tolist()
    return float(loss / tokens)


def _nll(model: Any, batch: Batch) -> torch.Tensor:
    """Sum the loss of a batch, and count its learned tokens."""
    device = next(model.parameters()).device
    targets = batch.labels[:, 1:].to(device)
    positions = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
    inputs = {"input_ids": batch.input_ids.to(device), "attention_mask": batch.attention_mask.to(device)}
    logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
    targets = targets[:, positions]
    learned = targets != IGNORED_LABEL
    loss = functional.cross_entropy(logits[learned].float(), targets[learned], reduction="sum")
    return torch.tensor([float(loss.detach()), int(learned.sum())], dtype=torch.float64)


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Switch dropout off and keep the random state.

    `model.eval()` would do more: on a CPU with AVX512-BF16, bitsandbytes repacks an NF4 layer at its first forward pass
    in that mode, and the training would go on with garbage.
    """
    active = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module in active:
            module.train()


def best(points: Sequence[HeldOutPoint]) -> HeldOutPoint | None:
    """Return the measurement with the lowest loss, the earliest of equal ones."""
    return min(points, key=lambda point: point.loss, default=None)


def is_exhausted(points: Sequence[HeldOutPoint], patience: int | None) -> bool:
    """Whether so many measurements have passed since the best one that the training should stop."""
    lowest = best(points)
    return patience is not None and lowest is not None and sum(point.step > lowest.step for point in points) >= patience


class HeldOutLoss(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Measures at every so many steps and at the last one; must come before the callback that logs."""

    def __init__(self, spec: TrainingSpec, batches: Sequence[Batch], precision: Precision, out_dir: Path) -> None:
        """Go on from the measurements that an earlier attempt left in `out_dir`."""
        self._every, self._patience = spec.held_out_loss_every_optimizer_steps, spec.early_stopping_patience
        self._keeps_best = spec.weights == "best"
        self._batches, self._precision, self._file = batches, precision, out_dir / FILE
        self.points = read_points(out_dir)

    @property
    def stopped_early(self) -> bool:
        """Whether patience has run out."""
        return is_exhausted(self.points, self._patience)

    def best_step(self) -> int | None:
        """Step of the checkpoint that must stay; None where the last weights are handed on."""
        lowest = best(self.points) if self._keeps_best else None
        return lowest.step if lowest else None

    def at(self, step: int) -> dict[str, float]:
        """Give the figure of a step for its line in the metrics file; nothing where none was measured."""
        newest = self.points[-1] if self.points else None
        return {"held_out_loss": newest.loss} if newest is not None and newest.step == step else {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **__: Any
    ) -> None:
        """Measure, keep the figure, and say what follows: log it, save a new best, stop."""
        if self._every is None or (state.global_step % self._every and state.global_step < state.max_steps):
            return
        loss = mean_loss(model, self._batches, self._precision, args.process_index, args.world_size)
        self.points.append(HeldOutPoint(step=state.global_step, loss=loss))
        if state.is_world_process_zero:
            write_whole(self._file, "".join(point.model_dump_json() + "\n" for point in self.points))
        control.should_log = True
        control.should_save = control.should_save or (self._keeps_best and best(self.points) is self.points[-1])
        control.should_training_stop = control.should_training_stop or self.stopped_early


def read_points(out_dir: Path) -> list[HeldOutPoint]:
    """Read the measurements of earlier attempts."""
    path = out_dir / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [HeldOutPoint.model_validate_json(line) for line in lines]


def forget_after(out_dir: Path, step: int) -> None:
    """Drop the measurements of steps that will be done again."""
    kept = [point for point in read_points(out_dir) if point.step <= step]
    if kept or (out_dir / FILE).exists():
        write_whole(out_dir / FILE, "".join(point.model_dump_json() + "\n" for point in kept))


def summary_of(points: Sequence[HeldOutPoint], spec: TrainingSpec, last_step: int) -> HeldOut | None:
    """Say what the measurements led to; None where none were made."""
    lowest = best(points)
    if lowest is None:
        return None
    return HeldOut(
        first_loss=points[0].loss,
        best=lowest,
        last=points[-1],
        weights_of_step=lowest.step if spec.weights == "best" else last_step,
        stopped_early=is_exhausted(points, spec.early_stopping_patience),
    )
