"""A stage's progress in the words and units of a person who watches it."""

from collections.abc import Callable, Mapping

from flows.summaries import size
from tuneline.contracts.jobs import ProgressEvent

SECONDS_LEFT = "seconds_left"
UNSAID = frozenset({"tokens", "seconds", SECONDS_LEFT})
"""Figures for charts: the line says steps, speed and the time left."""
WRITERS: Mapping[str, Callable[[float], str]] = {
    "loss": "loss {:.3f}".format,
    "learning_rate": "lr {:.1e}".format,
    "tokens_per_second": "{:,.0f} tokens/s".format,
    "share_of_peak_4n": "{:.0%} of peak (4N)".format,
    "share_of_peak_6n": "{:.0%} of peak (6N)".format,
    "peak_memory_bytes": size,
    "held_out_loss": "held-out loss {:.3f}".format,
    "reward_accuracy": "{:.0%} of pairs right".format,
    "divergence": "divergence {:.3f}".format,
    "grad_norm": "gradient norm {:.2f}".format,
}
"""How a figure is written, most wanted first: a narrow terminal cuts the end off. 4N and 6N are the operations a token
that the share of the peak (MFU) counts, N being the weights: an adapter's base needs no weight gradients."""


def describe(event: ProgressEvent) -> str:
    """Write an event's note, or else its figures, in a line."""
    if event.note:
        return event.note
    known = [write(event.metrics[name]) for name, write in WRITERS.items() if name in event.metrics]
    others = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in event.metrics.items()
        if name not in WRITERS and name not in UNSAID
    ]
    return ", ".join([*known, *others])


def line_of(event: ProgressEvent) -> str:
    """Write all of an event in a line."""
    return ", ".join(filter(None, (how_far(event), describe(event))))


def is_news(event: ProgressEvent) -> bool:
    """Tell a result on the way, as a preflight's, from the mere state of a stage: it has words and figures."""
    return bool(event.note and event.metrics)


def fitted(words: str, width: int) -> str:
    """Leave out the last parts of a line that is too long, rather than cut one in two."""
    return words if len(words) <= width else words[: width + 2].rpartition(", ")[0] or words


def done_of(event: ProgressEvent) -> str:
    """Write how much is done: `400/1,000 steps`."""
    count = f"{event.done:,}/{event.planned:,}" if event.planned else f"{event.done:,}"
    return f"{count} {event.unit}".strip()


def how_far(event: ProgressEvent) -> str:
    """Write how much is done and, where the stage expects it, how long the rest will take."""
    left = event.metrics.get(SECONDS_LEFT)
    if left is None or event.done == event.planned:
        return done_of(event)
    return f"{done_of(event)}, {in_words(left)} left"


def in_words(seconds: float) -> str:
    """Write a time that is an estimate: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"
