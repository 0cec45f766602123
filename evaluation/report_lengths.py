"""Where the bars of the length histogram go; the template draws them, so that colours follow the reader's theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.charts import Tick, nice_ticks
from tuneline.contracts.artifacts import LengthSummary
from tuneline.contracts.receipt import LengthBin

WIDTH, HEIGHT = 760, 240
LEFT, RIGHT, TOP, BOTTOM = 52.0, WIDTH - 24.0, 34.0, HEIGHT - 26.0
CLOSEST_LABELS = 56.0
"""Pixels between two labels of the x axis, and between two percentiles' names: six digits fit."""


@dataclass(frozen=True)
class Bar:
    """Rows of a bin, in pixels; `label` says it in words."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class LengthChart:
    """Bars of one width, whatever their bins span, with the percentiles as lines over them."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    percentiles: tuple[Tick, ...]


def length_chart(bins: Sequence[LengthBin], lengths: LengthSummary) -> LengthChart | None:
    """Lay out the histogram; None when there is no bin."""
    if not bins:
        return None
    marks = [mark for mark in nice_ticks(0.0, max(1, *(one.rows for one in bins)), 4) if mark == int(mark)]
    step = (RIGHT - LEFT) / len(bins)
    return LengthChart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        bars=tuple(_bar(one, LEFT + place * step, step, marks[-1]) for place, one in enumerate(bins)),
        x_ticks=tuple(_edges(bins, step)),
        y_ticks=tuple(Tick(_up(mark, marks[-1]), f"{mark:,.0f}") for mark in marks),
        percentiles=_apart([Tick(_across(bins, step, tokens), name) for name, tokens in _named(lengths)]),
    )


def _bar(one: LengthBin, x: float, step: float, most: float) -> Bar:
    y = _up(one.rows, most)
    label = f"{one.from_tokens:,} to {one.to_tokens:,} tokens: {one.rows:,} rows"
    return Bar(x + 1, y, max(1.0, step - 2), BOTTOM - y, label)


def _up(rows: float, most: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * rows / most


def _edges(bins: Sequence[LengthBin], step: float) -> list[Tick]:
    """Label the bins' upper edges, as many as there is room for."""
    every = math.ceil(CLOSEST_LABELS / step)
    return [
        Tick(LEFT + (place + 1) * step, f"{one.to_tokens:,}")
        for place, one in enumerate(bins)
        if (place + 1) % every == 0
    ]


def _named(lengths: LengthSummary) -> list[tuple[str, int]]:
    percentiles = (("p50", lengths.p50), ("p90", lengths.p90), ("p95", lengths.p95), ("p99", lengths.p99))
    return [*percentiles, ("max", lengths.max)]


def _across(bins: Sequence[LengthBin], step: float, tokens: int) -> float:
    """Place a length inside its bin; outside all bins, at the nearer end."""
    for place, one in enumerate(bins):
        if tokens <= one.to_tokens:
            inside = (tokens - one.from_tokens + 1) / (one.to_tokens - one.from_tokens + 1)
            return LEFT + (place + min(1.0, max(0.0, inside))) * step
    return RIGHT


def _apart(ticks: Sequence[Tick]) -> tuple[Tick, ...]:
    """Drop the names of lines that stand too close to the one before, but never a line."""
    kept = [ticks[0]]
    for before, tick in pairwise(ticks):
        close = tick.at - before.at < CLOSEST_LABELS / 2
        kept.append(Tick(tick.at, "") if close else tick)
    return tuple(kept)
