"""Where the marks of the report's charts go; the template draws them, so that colours follow the reader's theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.contracts.artifacts import Check, Outcome

MAX_LINE_POINTS = 600
"""Points of a drawn line: more cannot be told apart at 1,000 pixels and would only make the page heavy."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """A line in a box of `width` by `height` pixels, the axes' labels included."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    line: str
    """Points of an SVG polyline."""
    area: str
    """The same, closed along the bottom."""
    end_x: float
    end_y: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[tuple[float, float], ...] = ()
    """Points apart from the line."""


def line_chart(
    points: Sequence[tuple[float, float]], width: int, height: int, marks: Sequence[tuple[float, float]] = ()
) -> LineChart | None:
    """Lay out a line, and marks beside it, over common axes; None for fewer than two points."""
    finite = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
    if len(finite) < 2 or finite[0][0] == finite[-1][0]:
        return None
    shown = _thinned(finite)
    x_values, y_values = [x for x, _ in shown], [y for _, y in (*shown, *marks)]
    starts_at_zero = 0 <= min(y_values) < max(y_values) / 2
    y_marks = nice_ticks(0.0 if starts_at_zero else min(y_values), max(y_values), 4)
    x_marks = [x for x in nice_ticks(x_values[0], x_values[-1], 6) if x_values[0] <= x <= x_values[-1]]
    left, right, top, bottom = 52.0, width - 14.0, 10.0, height - 26.0
    across = _Scale(x_values[0], x_values[-1], left, right)
    up = _Scale(y_marks[0], y_marks[-1], bottom, top)
    places = [f"{across(x):.1f},{up(y):.1f}" for x, y in shown]
    return LineChart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        line=" ".join(places),
        area=" ".join([f"{left:.1f},{bottom:.1f}", *places, f"{right:.1f},{bottom:.1f}"]),
        end_x=across(x_values[-1]),
        end_y=up(shown[-1][1]),
        x_ticks=tuple(Tick(across(x), f"{x:,.0f}") for x in x_marks),
        y_ticks=tuple(Tick(up(y), _short(y)) for y in y_marks),
        marks=tuple((across(x), up(y)) for x, y in marks),
    )


@dataclass(frozen=True)
class ForestRow:
    """A check's interval beside its bound, in per cent of the row's width, so that the page can stretch it."""

    check: Check
    low: float
    high: float
    estimate: float
    bound: float
    label: str
    """The estimate and its interval in the check's unit."""
    bound_label: str
    outcome: str
    """`promote`, `reject` or `inconclusive`."""


def forest_row(check: Check, unit: str) -> ForestRow:
    """Lay out one check on an axis of its own, for checks differ in unit and size.

    Args:
        check: a check of the verdict.
        unit: `points` (a difference of shares), `share`, or `nats` (per token).
    """
    low, high = min(check.low, check.bound), max(check.high, check.bound)
    margin = 0.12 * (high - low) or 0.01
    middle, lower, upper, limit = _in_unit((check.estimate, check.low, check.high, check.bound), unit)
    name = "%" if unit == "share" else unit
    place = _Scale(low - margin, high + margin, 0.0, 100.0)
    return ForestRow(
        check=check,
        low=place(check.low),
        high=place(check.high),
        estimate=place(check.estimate),
        bound=place(check.bound),
        label=f"{middle} {name} ({lower} to {upper})",
        bound_label=f"{limit} {name}" if check.bound else "0",
        outcome=Outcome(check.outcome).value.lower(),
    )


def _in_unit(values: Sequence[float], unit: str) -> tuple[str, ...]:
    match unit:
        case "points":
            return tuple(f"{100 * value:+.1f}" for value in values)
        case "share":
            return tuple(f"{100 * value:.1f}" for value in values)
    return tuple(f"{value:+.3f}" for value in values)


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar, in per cent of the bar's width."""

    label: str
    amount: float
    left: float
    width: float


def stacked_bar(parts: Sequence[tuple[str, float]], whole: float) -> tuple[Segment, ...]:
    """Lay the parts end to end, largest first, on a bar that is `whole` long."""
    segments, left = [], 0.0
    for label, amount in sorted(parts, key=lambda part: -part[1]):
        width = 100 * amount / whole
        segments.append(Segment(label, amount, left, width))
        left += width
    return tuple(segments)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """List round numbers around `low` to `high`, about `count` steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low or abs(high) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _short(value: float) -> str:
    """Write a tick's value: 0.05, but 1.5e-4 for what would be a row of zeros."""
    if value == 0.0 or abs(value) >= 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until few enough points are left; the last stays as it is."""
    group = math.ceil(len(points) / MAX_LINE_POINTS)
    if group == 1:
        return points
    chunks = [points[start : start + group] for start in range(0, len(points) - 1, group)]
    means = [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
    return [*means, points[-1]]
