"""The rules by which one answer is right, and the means over a suite."""

import pytest

from evaluation.items import ItemResult
from evaluation.scoring import METRICS, exact_match, json_validity, summarise


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("yes", "yes", True),
        (" yes\n", "yes", True),
        ("yes", "yes ", True),
        ("Yes", "yes", False),
        ("yes.", "yes", False),
        ("a  b", "a b", False),
        ("", "", True),
        ('{"a":1,"b":2}', '{"a":1,"b":2}', True),
        ('{"b":2,"a":1}', '{"a":1,"b":2}', False),
        ('{"a": 1}', '{"a":1}', False),
    ],
)
def test_exact_match_compares_text_without_the_white_space_around_it(answer: str, expected: str, right: bool) -> None:
    assert exact_match(answer, expected) is right
    assert METRICS["exact_match"](answer, expected) is right


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, null]}', True),
        ("[]", True),
        (' {"a": 1}\n', True),
        ('"text"', False),
        ("12", False),
        ("null", False),
        ("", False),
        ('{"a": 1', False),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ('{"a": -Infinity}', False),
        ('{"a": 1} and more', False),
        ('```json\n{"a": 1}\n```', False),
        ("[" * 100_000, False),
    ],
)
def test_json_validity_wants_one_object_or_array_and_nothing_else(answer: str, valid: bool) -> None:
    assert json_validity(answer) is valid
    assert METRICS["json_validity"](answer, "whatever is expected") is valid


def result(nll: float, answer_tokens: int, metrics: dict[str, float], stopped: bool | None) -> ItemResult:
    return ItemResult(
        suite="target",
        row_id=str(nll),
        prompt_sha256="0",
        model="base",
        answer=None,
        expected="",
        metrics=metrics,
        stopped=stopped,
        new_tokens=0,
        nll=nll,
        answer_tokens=answer_tokens,
    )


def test_means_count_items_and_the_loss_counts_tokens() -> None:
    score = summarise(
        [
            result(8.0, 2, {"exact_match": 1.0}, True),
            result(1.0, 7, {"exact_match": 0.0}, False),
            result(0.0, 1, {"exact_match": 1.0}, True),
        ]
    )
    assert (score.model, score.suite, score.items) == ("base", "target", 3)
    assert score.metrics == pytest.approx({"exact_match": 2 / 3, "stopped": 2 / 3, "held_out_loss": 0.9})


def test_without_answers_there_is_only_the_loss() -> None:
    assert summarise([result(3.0, 2, {}, None)]).metrics == {"held_out_loss": 1.5}
