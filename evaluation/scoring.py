"""Scores of one answer, and their means over a suite."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Final, NoReturn

from evaluation.items import ItemResult
from tuneline.contracts.artifacts import SuiteScore


def exact_match(answer: str, expected: str) -> bool:
    """Say whether two texts are equal once white space at either end is gone.

    JSON is compared as text too: other spacing or another order of keys is a mismatch.
    """
    return answer.strip() == expected.strip()


def json_validity(answer: str) -> bool:
    """Say whether an answer as a whole is one JSON object or array (RFC 8259, so without NaN and Infinity)."""
    try:
        value = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


METRICS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "exact_match": exact_match,
    "json_validity": lambda answer, expected: json_validity(answer),
}
"""By the names of `evaluation.metrics`: a function of the answer and the expected text."""


def summarise(results: Sequence[ItemResult]) -> SuiteScore:
    """Average the results of one model on one suite.

    `held_out_loss` weighs tokens, not items, as the training loss does.

    Args:
        results: at least one, all with the same model, suite and metrics.
    """
    first = results[0]
    means = {name: fsum(result.metrics[name] for result in results) / len(results) for name in first.metrics}
    if first.stopped is not None:
        means["stopped"] = sum(bool(result.stopped) for result in results) / len(results)
    means["held_out_loss"] = fsum(result.nll for result in results) / sum(result.answer_tokens for result in results)
    return SuiteScore(model=first.model, suite=first.suite, items=len(results), metrics=means)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
