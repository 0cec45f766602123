"""Batches of like lengths under a token budget."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import torch

Answer = TypeVar("Answer")
OnDone = Callable[[int], None]
"""Hears how many rows have just been finished."""


def unheard(rows: int) -> None:
    """Report to nobody."""


def batches_by_length(lengths_tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group rows of like lengths, so that little of a batch is padding.

    Args:
        lengths_tokens: length of each row.
        token_budget: most tokens of a batch, padding included; a row longer than that is a batch of its own.

    Returns:
        Row numbers by batch, longest first: what does not fit in memory shows at once and not at the end.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths_tokens)), key=lambda row: -lengths_tokens[row]):
        if batches and (len(batches[-1]) + 1) * lengths_tokens[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def halving(compute: Callable[[list[int]], list[Answer]], rows: list[int]) -> list[Answer]:
    """Compute a batch, in halves when it does not fit in the device's memory.

    Args:
        compute: maps row numbers to one answer each, in their order.
        rows: the batch.

    Raises:
        torch.OutOfMemoryError: when a single row does not fit.
    """
    try:
        return compute(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    # Out of the handler: while it runs, the traceback keeps the failed forward pass's tensors alive.
    torch.cuda.empty_cache()
    middle = len(rows) // 2
    return list(chain.from_iterable(halving(compute, half) for half in (rows[:middle], rows[middle:])))
