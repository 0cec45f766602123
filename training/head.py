"""The loss head at the learned positions only, for a CPU.

The hidden states of all other positions never reach the output embedding, and no logits are kept for the backward pass:
their gradient is made beside the loss, a slice that stays in the cache at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

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
        for part, target, into in zip(logits.split(step), targets.split(step), gradient.split(step), strict=True):
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
    total: torch.Tensor = _CrossEntropySum.apply(logits, targets)
    return total


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
