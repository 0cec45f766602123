"""Whether every trainable tensor moves: after three optimizer steps each must have, or the training learns less than
it seems to.

What keeps a tensor still: it is not in the optimizer, no gradient reaches it (an adapter that a fused kernel computes
past), or its number format is too coarse for the steps (DoRA's magnitudes in bfloat16). A tensor is remembered as the
sum of its bits, so that a full training needs no second model.

Three steps are enough: a low-rank pair moves `up` in the first step and `down`, whose gradient is 0 while `up` is,
in the second. Steps at a rate of 0 (the first of a warm-up) and steps that a loss scale skipped do not count.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneline.contracts.jobs import JobInterrupted, JobStatus

STEPS = 3
_EXPERT = re.compile(r"\.experts\.\d+\.")


class Movement(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Watches the first steps, of a resumed training too."""

    def on_train_begin(self, _args: TrainingArguments, _state: TrainerState, _: TrainerControl, **__: Any) -> None:
        """Forget an earlier training."""
        self._before: dict[str, int] = {}
        self._rate = 0.0
        self._steps = 0
        self._settled = False

    def on_step_begin(
        self, _args: TrainingArguments, _state: TrainerState, _: TrainerControl, model: Any, **__: Any
    ) -> None:
        """Remember the tensors before the first step."""
        if not self._settled and not self._before:
            self._before = {name: checksum(tensor) for name, tensor in trainables(model)}

    def on_optimizer_step(
        self, _args: TrainingArguments, _state: TrainerState, _: TrainerControl, optimizer: Any, **__: Any
    ) -> None:
        """Count the steps that could move something."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if min(rates) > 0 and not getattr(optimizer, "step_was_skipped", False):
            self._steps += 1
            self._rate += min(rates)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, _: TrainerControl, model: Any, **__: Any
    ) -> None:
        """Compare, after three steps.

        Raises:
            JobInterrupted: naming the tensors that did not move.
        """
        if self._settled or self._steps < STEPS:
            return
        now = dict(trainables(model))
        moved = _on_any_rank([checksum(now[name]) != before for name, before in self._before.items()], args)
        still = still_names(dict(zip(self._before, moved, strict=True)))
        waiting = [name for name in still if not could_move(now[name], self._rate)]
        # A rank sees only its shards: all must agree on whether to go on looking.
        waits = _on_any_rank([bool(waiting)], args)[0]
        if stuck := [name for name in still if name not in waiting and not waits]:
            raise JobInterrupted(JobStatus.FAILED, _words(stuck, state.global_step), state.global_step, state.max_steps)
        self._settled = not waits


def trainables(model: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Name the tensors that are trained; of a sharded one, this rank's part."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            data = parameter.detach()
            yield name, data.to_local() if hasattr(data, "to_local") else data


def checksum(tensor: torch.Tensor) -> int:
    """Sum the bits of a tensor's numbers as integers, without a copy of it."""
    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return int(tensor.contiguous().view(bits).sum(dtype=torch.int64))


def still_names(moved: Mapping[str, bool]) -> list[str]:
    """List the tensors that did not move, experts by the same matrix of a layer: one of them may have had no token."""
    groups: dict[str, list[str]] = {}
    for name in moved:
        groups.setdefault(_EXPERT.sub(".experts.*.", name), []).append(name)
    return [name for names in groups.values() if not any(moved[name] for name in names) for name in names]


def could_move(tensor: torch.Tensor, rate: float) -> bool:
    """Whether steps whose rates add up to `rate` reach the next float32 number.

    An Adam step is about as long as its rate. Trainable weights are float32; where they are not, a training in which
    they stand still is the failure that is looked for.
    """
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return rate > torch.finfo(torch.float32).eps * largest


def _on_any_rank(flags: list[bool], args: TrainingArguments) -> list[bool]:
    if args.world_size == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def _words(stuck: list[str], step: int) -> str:
    names = ", ".join(name.removeprefix("base_model.model.") for name in stuck[:5])
    return (
        f"{len(stuck)} trainable tensors have not moved by step {step}: {names}{', ...' if len(stuck) > 5 else ''}. "
        "No gradient reaches them, or they are not in the optimizer: name other targets"
    )
