"""Answers to show side by side: those that training fixed, those that are still wrong, and those that it broke."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.items import BASE, CANDIDATE, TARGET, ItemResult

Kind = Literal["broken", "still wrong", "fixed", "right in both"]
SHOWN: Mapping[Kind, int] = {"fixed": 2, "still wrong": 3, "broken": 4}
"""Items of each kind on the page; the faults teach most."""


@dataclass(frozen=True)
class ShownAnswer:
    """One model's answer and whether the metric calls it right."""

    model: str
    text: str
    right: bool


@dataclass(frozen=True)
class Sample:
    """An item with every model's answer."""

    kind: Kind
    row_id: str
    expected: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class SampleSet:
    """The samples, and how many items there are of each kind."""

    metric: str
    counts: Mapping[Kind, int]
    samples: tuple[Sample, ...]


def choose_samples(items: Sequence[ItemResult], gate_metric: str) -> SampleSet | None:
    """Sort the target suite's items by what became of them and take a few of each kind, spread over the suite.

    Args:
        items: every model's results.
        gate_metric: preferred measure of right and wrong; where it is the loss, the first metric of the answers.

    Returns:
        The samples; None when no answers were generated.
    """
    by_row: dict[str, dict[str, ItemResult]] = {}
    for item in items:
        if item.suite == TARGET and item.metrics and item.answer is not None:
            by_row.setdefault(item.row_id, {})[item.model] = item
    rows = [answers for answers in by_row.values() if BASE in answers and CANDIDATE in answers]
    if not rows:
        return None
    known = rows[0][CANDIDATE].metrics
    metric = gate_metric if gate_metric in known else next(iter(known))
    sorted_rows: dict[Kind, list[dict[str, ItemResult]]] = {
        kind: [] for kind in ("fixed", "still wrong", "broken", "right in both")
    }
    for answers in rows:
        sorted_rows[_kind(answers, metric)].append(answers)
    samples = [
        _sample(kind, answers, metric) for kind, most in SHOWN.items() for answers in _spread(sorted_rows[kind], most)
    ]
    return SampleSet(metric, {kind: len(found) for kind, found in sorted_rows.items()}, tuple(samples))


def _kind(answers: Mapping[str, ItemResult], metric: str) -> Kind:
    match answers[BASE].metrics[metric] >= 0.5, answers[CANDIDATE].metrics[metric] >= 0.5:
        case False, True:
            return "fixed"
        case True, False:
            return "broken"
        case True, True:
            return "right in both"
    return "still wrong"


def _sample(kind: Kind, answers: Mapping[str, ItemResult], metric: str) -> Sample:
    shown = [
        ShownAnswer(model, item.answer or "", item.metrics[metric] >= 0.5) for model, item in sorted(answers.items())
    ]
    return Sample(kind, answers[CANDIDATE].row_id, answers[CANDIDATE].expected, tuple(shown))


def _spread(rows: list[dict[str, ItemResult]], most: int) -> list[dict[str, ItemResult]]:
    count = min(most, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]
