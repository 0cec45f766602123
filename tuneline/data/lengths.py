"""Rows longer than the limit: refused, dropped, cut or split, as the config says, and counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.artifacts import LengthSummary
from tuneline.contracts.receipt import LengthBin, LengthLimit
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.data.masks import Span, Turn
from tuneline.data.rendering import Rendered, Tokens

POWERS_OF_TWO = tuple(2**power for power in range(5, 21))
"""Lengths whose cost is reported, 32 to a million tokens, beside that of the limit in use."""
HISTOGRAM_BINS = 16


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of a row: the rows within the limit (none when dropped), and whether it was cut."""

    rows: tuple[Rendered, ...]
    cut: bool


def fit(row: Rendered, limit_tokens: int, policy: str) -> Fitted:
    """Apply `data.over_length` to a row; `error` drops, and the caller weighs what that cost."""
    longest = max(len(row.tokens.ids), len(row.rejected.ids) if row.rejected else 0)
    if longest <= limit_tokens:
        return Fitted((row,), cut=False)
    if policy == "split" and row.rejected is None:
        return Fitted(tuple(_split(row, limit_tokens)), cut=True)
    if policy not in ("truncate_left", "truncate_right"):
        return Fitted((), cut=False)
    rejected = _truncate(row.rejected, limit_tokens, policy) if row.rejected else None
    start = max(0, len(row.tokens.ids) - limit_tokens) if policy == "truncate_left" else 0
    cut = replace(_part(row, start, start + limit_tokens), rejected=rejected)
    return Fitted((cut,) if cut.tokens.learned and (not rejected or rejected.learned) else (), cut=True)


def limits_around(limit_tokens: int) -> tuple[int, ...]:
    """List the limits whose cost is told."""
    return tuple(sorted({*POWERS_OF_TWO, limit_tokens}))


def lost_by_truncation(rows: Sequence[NDArray[np.int32]], limits_tokens: Sequence[int]) -> NDArray[np.int64]:
    """Count the learned tokens beyond each limit, over rows of labels."""
    if not rows:
        return np.zeros(len(limits_tokens), dtype=np.int64)
    lengths = [len(labels) for labels in rows]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    learned = np.concatenate(rows) != IGNORED_LABEL
    places = np.arange(len(learned))[learned] - starts[learned]
    within = np.bincount(np.searchsorted(limits_tokens, places, side="right"), minlength=len(limits_tokens) + 1)
    return np.asarray(len(places) - np.cumsum(within)[:-1], dtype=np.int64)


def limit_costs(
    lengths: NDArray[np.int32], learned: NDArray[np.int32], lost: NDArray[np.int64], limit_tokens: int
) -> tuple[LengthLimit, ...]:
    """Tell what the limit in use costs, and what others from the median length up to the longest row would.

    Args:
        lengths: tokens of each row, before any was cut.
        learned: learned tokens of each row.
        lost: sums of `lost_by_truncation` for `limits_around(limit_tokens)`.
        limit_tokens: the limit in use.
    """
    total = max(1, int(learned.sum()))
    median, longest = (int(np.median(lengths)), int(lengths.max())) if len(lengths) else (0, 0)
    limits = limits_around(limit_tokens)
    shown = [n for n, limit in enumerate(limits) if median <= limit < 2 * longest or limit == limit_tokens]
    return tuple(
        LengthLimit(
            limit_tokens=limits[number],
            rows_over=int((lengths > limits[number]).sum()),
            learned_share_lost_by_drop=float(learned[lengths > limits[number]].sum() / total),
            learned_share_lost_by_truncate_right=float(lost[number] / total),
        )
        for number in shown
    )


def summarise(lengths: NDArray[np.int32] | Sequence[int]) -> LengthSummary:
    """Compute the percentiles of lengths in tokens (nearest rank)."""
    ordered = np.sort(np.asarray(lengths, dtype=np.int64))
    at = {share: int(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for share in (0.5, 0.9, 0.95, 0.99)}
    return LengthSummary(p50=at[0.5], p90=at[0.9], p95=at[0.95], p99=at[0.99], max=int(ordered[-1]))


def histogram(lengths: NDArray[np.int32]) -> tuple[LengthBin, ...]:
    """Count rows in bins of equal width, whole tokens wide."""
    longest = int(lengths.max())
    width = -(-longest // HISTOGRAM_BINS)
    counts = np.bincount((lengths - 1) // width, minlength=-(-longest // width))
    return tuple(
        LengthBin(from_tokens=number * width + 1, to_tokens=(number + 1) * width, rows=int(rows))
        for number, rows in enumerate(counts)
    )


def _truncate(tokens: Tokens, limit: int, policy: str) -> Tokens:
    excess = len(tokens.ids) - limit
    start = max(0, excess) if policy == "truncate_left" else 0
    return _window(tokens, start, start + limit)


def _part(row: Rendered, start: int, end: int) -> Rendered:
    """Keep the tokens from `start` up to `end`."""
    turns = tuple(Turn(turn.role, _inside(turn.span, start, end)) for turn in row.turns)
    return replace(row, tokens=_window(row.tokens, start, end), turns=turns)


def _split(row: Rendered, limit: int) -> Iterator[Rendered]:
    """Cut a row into windows; those without a learned token are left out."""
    for number, start in enumerate(range(0, len(row.tokens.ids), limit), start=1):
        part = _part(row, start, start + limit)
        if part.tokens.learned:
            yield replace(part, row_id=f"{row.row_id}:{number}")


def _window(tokens: Tokens, start: int, end: int) -> Tokens:
    answer = _inside(Span(tokens.answer_start, tokens.answer_end), start, end)
    return Tokens(tokens.ids[start:end], tokens.labels[start:end], answer.start, answer.end)


def _inside(span: Span, start: int, end: int) -> Span:
    return Span(min(max(span.start, start), end) - start, min(max(span.end, start), end) - start)
