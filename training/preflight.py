"""A few real optimizer steps before the training: what it will really take, while refusing costs nothing yet.

They run inside the trainer, when model, optimizer and processes are as the training will have them, at a learning rate
of 0: Adam subtracts `learning rate x step` and decays by `1 - learning rate x decay`, so that no weight moves. What
they do leave behind (moments, random states, the loss scale, TRL's averages) is put back.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.memory import peak_memory_bytes
from tuneline.contracts.artifacts import Preflight

LONGEST_STEPS = 3
"""On the longest micro-batch: the first, of one alone, warms up; the second, of two where the training accumulates, has
gradients, moments and activations at once."""
MIDDLE_STEPS = 2
"""On the micro-batch whose time counts, the last one: on two cores the first one of a new length takes 30 % longer."""
LIMIT_SECONDS = {"cuda": 120.0, "cpu": 20.0}
"""No step begins that would end later than this, going by the one before."""
TRAINER_AVERAGES = ("_metrics", "_total_train_tokens")
"""What TRL 1.16's trainers sum up between two logged steps."""


@dataclass(frozen=True)
class Layout:
    """The micro-batches of this rank in the order of the training, as numbers of its rows."""

    micro_batches: Sequence[Sequence[int]]
    row_tokens: Sequence[int]
    padded: bool

    def computed_tokens(self, micro_batch: Sequence[int]) -> int:
        """Tokens of a micro-batch, padding included."""
        tokens = [self.row_tokens[row] for row in micro_batch]
        return len(tokens) * max(tokens) if self.padded else sum(tokens)

    @property
    def longest(self) -> Sequence[int]:
        """The micro-batch with the most tokens."""
        return max(self.micro_batches, key=self.computed_tokens)

    @property
    def middle(self) -> Sequence[int]:
        """The micro-batch nearest to the mean: time being linear in tokens, it takes the mean time."""
        mean = self.mean
        return min(self.micro_batches, key=lambda micro_batch: abs(self.computed_tokens(micro_batch) - mean))

    @property
    def mean(self) -> float:
        """Mean tokens of a micro-batch, padding included."""
        return sum(map(self.computed_tokens, self.micro_batches)) / len(self.micro_batches)


@dataclass(frozen=True)
class StepSeconds:
    """What a step took: per micro-batch, and once."""

    micro_batch: float
    optimizer: float


class PreflightSteps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Measures before the first step; must be the trainer's first callback, so that no clock has started."""

    def __init__(
        self,
        trainer: Any,
        train_tokens: int,
        row_tokens: Sequence[int],
        accept: Callable[[Preflight], None],
        interrupted: Callable[[], bool],
    ) -> None:
        """Measure for `trainer`.

        Args:
            trainer: set up, not yet training.
            train_tokens: of the whole training, over all ranks, padding left out.
            row_tokens: tokens of each row of its data set.
            accept: gets what was measured, on every rank the same, and raises when it breaks the budget.
            interrupted: whether to make haste, because the training will stop after its first step.
        """
        self._trainer = trainer
        self._train_tokens = train_tokens
        self._row_tokens = row_tokens
        self._accept = accept
        self._interrupted = interrupted

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, _: TrainerControl, train_dataloader: Any, **__: Any
    ) -> None:
        """Measure, on a fresh start only: a training that goes on has figures of its own."""
        if state.global_step > 0:
            return
        batches = train_dataloader.batch_sampler
        cut = (self._trainer.micro_batches_of(batch, self._row_tokens) for batch in batches)
        padded = self._trainer.computes_padding
        layout = Layout([micro_batch for step in cut for micro_batch in step], self._row_tokens, padded)
        with _as_if_nothing_happened(self._trainer):
            found = self._measure(layout, state.max_steps)
        if found is not None:
            self._accept(found)

    def _measure(self, layout: Layout, steps: int) -> Preflight | None:
        (per_step,) = self._of_all_ranks(len(layout.micro_batches) / steps)
        longest, middle = layout.longest, layout.middle
        plan = [*[longest] * LONGEST_STEPS, *[middle] * MIDDLE_STEPS]
        started = time.monotonic()
        done: list[StepSeconds] = []
        for rows in plan:
            if done and not self._may_go_on(started, done[-1], per_step):
                break
            seconds = self._step(rows, 2 if done and per_step > 1 else 1)
            if seconds is None:
                return None
            done.append(seconds)
        last = done[-1]
        share = 1.0 if len(done) > LONGEST_STEPS else layout.mean / layout.computed_tokens(longest)
        seconds_to_finish = steps * (per_step * share * last.micro_batch + last.optimizer)
        peak, slowest = self._of_all_ranks(float(peak_memory_bytes(self._device)), seconds_to_finish)
        return Preflight(
            longest_steps=min(len(done), LONGEST_STEPS),
            micro_batch_tokens=layout.computed_tokens(longest),
            seconds=time.monotonic() - started,
            peak_memory_bytes=int(peak),
            tokens_per_second=self._train_tokens / slowest,
            hours=slowest / 3600,
            usd=None,
        )

    @property
    def _device(self) -> str:
        return str(self._trainer.args.device.type)

    def _may_go_on(self, started: float, last: StepSeconds, per_step: float) -> bool:
        elapsed = math.inf if self._interrupted() else time.monotonic() - started
        (latest,) = self._of_all_ranks(elapsed + min(2.0, per_step) * last.micro_batch + last.optimizer)
        return latest <= LIMIT_SECONDS[self._device]

    def _of_all_ranks(self, *figures: float) -> list[float]:
        """Return the largest of each figure, so that all ranks decide alike."""
        shared = torch.tensor([figures], dtype=torch.float64, device=self._trainer.args.device)
        largest: list[float] = self._trainer.accelerator.gather(shared).max(dim=0).values.tolist()
        return largest

    def _step(self, rows: Sequence[int], micro_batches: int) -> StepSeconds | None:
        """Do an optimizer step of so many times the same micro-batch; None when its gradient is no number."""
        trainer, model = self._trainer, self._trainer.model_wrapped
        collated = [trainer.data_collator([trainer.train_dataset[row] for row in rows]) for _ in range(micro_batches)]
        started = self._clock()
        batches, items = trainer.get_batch_samples(iter(collated), micro_batches, trainer.args.device)
        trainer.current_gradient_accumulation_steps = micro_batches
        for number, batch in enumerate(batches, 1):
            last = number == micro_batches
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else trainer.accelerator.no_sync(model):
                trainer.training_step(model, batch, items)
        halfway = self._clock()
        norm = trainer._clip_grad_norm(model)
        # float16 finds its loss scale by overflowing; otherwise the training itself must stop, and say so.
        if not math.isfinite(trainer._get_grad_norm(model, grad_norm=norm)) and trainer.accelerator.scaler is None:
            return None
        trainer.optimizer.step()
        model.zero_grad()
        return StepSeconds((halfway - started) / micro_batches, self._clock() - halfway)

    def _clock(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


@contextmanager
def _as_if_nothing_happened(trainer: Any) -> Iterator[None]:
    """Hold the weights still inside the block, and put back after it what steps change beside them."""
    optimizer, scaler = trainer.optimizer, trainer.accelerator.scaler
    assert not optimizer.state, "a fresh optimizer has no moments"
    rates = [group["lr"] for group in optimizer.param_groups]
    scale = copy.deepcopy(scaler.state_dict()) if scaler else None
    averages = {name: copy.deepcopy(getattr(trainer, name)) for name in TRAINER_AVERAGES if hasattr(trainer, name)}
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        try:
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
    trainer.model_wrapped.zero_grad()
    optimizer.state.clear()
    if scaler:
        scaler.load_state_dict(scale)
    for name, value in averages.items():
        setattr(trainer, name, value)
    random.setstate(python)
    numpy.random.set_state(numbers)
