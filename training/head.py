"""The sum of the cross entropies of a micro-batch's learned tokens, without the logits of any other.

On a GPU TRL's fused head does it. On a CPU that head projects every position and computes entropy and accuracy beside
the loss; here the hidden states of the other positions never reach the output embedding, and the gradient of the logits
is made beside the loss, a slice that stays in the cache at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from training.micro_batches import MicroBatch
from tuneline.contracts.records import IGNORED_LABEL

SLICE_ELEMENTS = 1 << 19
"""Logits worked on at a time: 2 MiB in float32, which is a core's second-level cache."""


class _CrossEntropySum(torch.autograd.Function):
    """Sum of cross entropies whose gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Score in float32; `logits` has shape (tokens, vocabulary)."""
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64)
        step = max(1, SLICE_ELEMENTS // logits.shape[1])
        slices = (torch.split(tensor, step) for tensor in (logits, targets, gradient))
        for part, target, into in zip(*slices, strict=True):
            scores = part.float() if part.dtype != torch.float32 else part.clone()
            picked = scores.gather(1, target[:, None])
            normaliser = scores.logsumexp(1, keepdim=True)
            total += (normaliser - picked).sum(dtype=torch.float64)
            shares = scores.sub_(normaliser).exp_()
            shares.scatter_add_(1, target[:, None], torch.full_like(picked, -1.0))
            into.copy_(shares)
        ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Scale the gradient."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum the cross entropies of tokens, in nats."""
    if not logits.requires_grad:
        return functional.cross_entropy(logits.float(), targets, reduction="sum")
    total: torch.Tensor = _CrossEntropySum.apply(logits, targets)  # type: ignore[no-untyped-call]
    return total


def learned_positions(micro_batch: MicroBatch) -> torch.Tensor:
    """Tell at which positions the next token is learned, shape (rows, tokens)."""
    return functional.pad(micro_batch["labels"][:, 1:] != IGNORED_LABEL, (0, 1))


def loss_at_learned_positions(model: Any, head: torch.nn.Module, micro_batch: MicroBatch) -> torch.Tensor:
    """Sum the cross entropies, in nats, with the output embedding `head` seeing the learned positions only."""
    positions = learned_positions(micro_batch)
    targets = micro_batch["labels"].roll(-1, dims=1)[positions]
    inputs = {name: value for name, value in micro_batch.items() if name != "labels"}
    with only_at(head, positions):
        logits = model(**inputs, use_cache=False).logits
    return cross_entropy_sum(logits[0], targets)


def loss_of_fused_head(model: Any, micro_batch: MicroBatch) -> torch.Tensor:
    """Sum the cross entropies, in nats, with the head that TRL's trainer gives the model: tiles, and no logits."""
    log_probs: torch.Tensor = model(**micro_batch, use_cache=False, fused_lm_head=True).log_probs
    return -log_probs.sum()  # zero where nothing is learned


@contextmanager
def only_at(head: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Let the output embedding see those positions alone.

    Args:
        head: the output embedding, called with hidden states of shape (rows, tokens, width).
        positions: of shape (rows, tokens), true where a token's successor is learned; the head is given one row.
    """

    def pick(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][positions][None],)

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
