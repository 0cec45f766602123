import math

import pytest

from evaluation.gate import decide
from evaluation.items import ItemResult
from tuneline.contracts.artifacts import EvalReport, Outcome
from tuneline.contracts.errors import UserError
from tuneline.contracts.spec import GateSpec

NO_CHAMPION = EvalReport(scores=(), champion_version=None, seconds=1.0)
WITH_CHAMPION = EvalReport(scores=(), champion_version="7", seconds=1.0)


def suite_of(name, right, items=100, metric="exact_match", models=("base", "candidate"), **changes):
    """Build a suite on which each model answers its `right` first items correctly."""
    return [
        one(name, f"{name}.jsonl:{row}", model, metrics={metric: float(row < right[model])}, **changes)
        for model in models
        for row in range(items)
    ]


def one(suite, row_id, model, **changes):
    values = {
        "prompt_sha256": f"prompt of {row_id}",
        "answer": "a",
        "expected": "b",
        "metrics": {"exact_match": 1.0},
        "stopped": True,
        "new_tokens": 2,
        "nll": 1.0,
        "answer_tokens": 2,
        **changes,
    }
    return ItemResult(suite=suite, row_id=row_id, model=model, **values)


def target(base, candidate, items=100):
    return suite_of("target", {"base": base, "candidate": candidate}, items)


def retention(base, candidate, items=100):
    return suite_of("retention", {"base": base, "candidate": candidate}, items)


def losses(base, candidate):
    """Build a target suite from (nats, tokens) pairs."""
    return [
        one("target", f"a:{row}", model, metrics={}, answer=None, nll=nats, answer_tokens=tokens)
        for model, pairs in (("base", base), ("candidate", candidate))
        for row, (nats, tokens) in enumerate(pairs)
    ]


def test_clearly_better_model_is_promoted_and_the_reason_holds_the_figures():
    verdict = decide(NO_CHAMPION, target(3, 92), GateSpec())
    assert verdict.outcome is Outcome.PROMOTE
    check = verdict.checks[0]
    assert (check.name, check.items, check.bound, check.missing_items) == ("target vs base", 100, 0.0, 0)
    assert check.estimate == pytest.approx(0.89)
    assert 0.80 < check.low < 0.89 < check.high < 0.95
    assert verdict.reasons[0] == (
        "exact match on 100 held-out items rose from the base model's 3.0 % to 92.0 % "
        f"(+89.0 points, 95 % interval {100 * check.low:+.1f} to {100 * check.high:+.1f}); needed: more than 0."
    )


def test_worse_model_is_rejected():
    verdict = decide(NO_CHAMPION, target(60, 40), GateSpec())
    assert verdict.outcome is Outcome.REJECT
    assert "fell from the base model's 60.0 % to 40.0 % (-20.0 points" in verdict.reasons[0]


def test_small_gain_on_few_items_is_inconclusive_and_says_how_many_items_are_missing():
    verdict = decide(NO_CHAMPION, target(10, 12), GateSpec())
    check = verdict.checks[0]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert check.missing_items == 293  # (1.96 + 0.8416)^2 / z^2 * 100 with z = 2 / sqrt(2), less the 100 at hand
    assert "about 293 more items like these would settle it" in check.reason


def test_identical_models_are_inconclusive_and_no_number_of_items_is_promised():
    verdict = decide(NO_CHAMPION, target(50, 50), GateSpec())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.checks[0].missing_items == 0
    assert "no number of items would settle it" in verdict.reasons[0]


def test_gain_that_does_not_reach_the_needed_improvement_is_rejected():
    verdict = decide(NO_CHAMPION, target(10, 30), GateSpec(min_improvement=0.4))
    assert verdict.outcome is Outcome.REJECT
    assert verdict.reasons[0].endswith(": short of what is needed, more than 40.0 points.")


def test_better_than_base_but_worse_than_champion_is_rejected():
    items = suite_of("target", {"base": 5, "candidate": 60, "champion": 80}, models=("base", "candidate", "champion"))
    verdict = decide(WITH_CHAMPION, items, GateSpec())
    assert [(check.name, check.outcome) for check in verdict.checks] == [
        ("target vs base", Outcome.PROMOTE),
        ("target vs champion", Outcome.REJECT),
    ]
    assert verdict.outcome is Outcome.REJECT
    assert verdict.champion_version == "7"
    assert "champion version 7's 80.0 %" in verdict.reasons[1]


def test_forgetting_beyond_the_margin_rejects_a_model_that_is_better_on_its_task():
    verdict = decide(NO_CHAMPION, target(3, 92) + retention(90, 60), GateSpec(retention_margin=0.05))
    assert verdict.outcome is Outcome.REJECT
    assert verdict.checks[0].outcome is Outcome.PROMOTE
    assert verdict.checks[1].bound == -0.05
    assert verdict.reasons[1].startswith(
        "exact match on 100 retention items fell from the base model's 90.0 % to 60.0 %"
    )
    assert verdict.reasons[1].endswith(": more than the 5.0 points allowed.")


def test_one_certain_failure_rejects_whatever_is_still_open():
    verdict = decide(NO_CHAMPION, target(10, 12) + retention(90, 60), GateSpec())
    assert [check.outcome for check in verdict.checks] == [Outcome.INCONCLUSIVE, Outcome.REJECT]
    assert verdict.outcome is Outcome.REJECT


def test_small_loss_within_the_margin_is_not_forgetting():
    verdict = decide(NO_CHAMPION, target(3, 92) + retention(900, 895, items=1000), GateSpec(retention_margin=0.05))
    assert verdict.outcome is Outcome.PROMOTE
    assert verdict.reasons[1].endswith("; allowed: a loss of less than 5.0 points.")


def test_too_few_retention_items_leave_a_better_model_inconclusive():
    verdict = decide(NO_CHAMPION, target(3, 92) + retention(18, 18, items=20), GateSpec())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.checks[1].missing_items > 20


def test_retention_is_held_against_the_base_even_when_there_is_a_champion():
    """A champion that forgot 4 points must not let its successors forget 4 more each."""
    models = ("base", "candidate", "champion")
    items = suite_of("target", {"base": 5, "candidate": 95, "champion": 60}, models=models)
    items += suite_of("retention", {"base": 900, "candidate": 800, "champion": 800}, 1000, models=models)
    assert decide(WITH_CHAMPION, items, GateSpec()).outcome is Outcome.REJECT


def test_absent_retention_suite_is_said_in_the_reasons():
    verdict = decide(NO_CHAMPION, target(3, 92), GateSpec())
    assert verdict.reasons[-1] == "Forgetting was not checked: the run has no retention suite (data.retention)."
    with_suite = decide(NO_CHAMPION, target(3, 92) + retention(500, 500, 500), GateSpec())
    assert not any("not checked" in reason for reason in with_suite.reasons)


@pytest.mark.parametrize(
    ("valid", "outcome"), [(100, Outcome.PROMOTE), (92, Outcome.INCONCLUSIVE), (80, Outcome.REJECT)]
)
def test_json_validity_is_judged_by_the_ends_of_its_interval(valid, outcome):
    """At least 90 % asked of 100 answers: Wilson gives 96 to 100, 85 to 96 and 71 to 87 %."""
    right = {"base": 0, "candidate": valid}
    items = suite_of("target", right, metric="json_validity")
    verdict = decide(NO_CHAMPION, items, GateSpec(metric="json_validity", min_json_validity=0.9))
    assert verdict.checks[1].name == "json validity"
    assert verdict.checks[1].outcome is outcome is verdict.outcome
    assert f"{valid}.0 % of 100 answers parse as JSON" in verdict.reasons[1]


def test_lower_loss_counts_as_an_improvement_per_token():
    base = [(4.0 + row % 3, 2) for row in range(30)]
    candidate = [(1.0 + row % 2, 2) for row in range(30)]
    verdict = decide(NO_CHAMPION, losses(base, candidate), GateSpec(metric="held_out_loss", min_improvement=0.5))
    assert verdict.outcome is Outcome.PROMOTE
    assert verdict.checks[0].estimate == pytest.approx((5.0 - 1.5) / 2)
    assert "fell from the base model's 2.500 to 0.750 nats per token (improvement +1.750" in verdict.reasons[0]
    assert verdict.reasons[0].endswith("needed: more than 0.5 nats per token.")
    assert decide(NO_CHAMPION, losses(candidate, base), GateSpec(metric="held_out_loss")).outcome is Outcome.REJECT


def test_wider_confidence_asks_for_more_evidence():
    items = target(50, 55)
    assert decide(NO_CHAMPION, items, GateSpec(confidence=0.9)).outcome is Outcome.PROMOTE
    assert decide(NO_CHAMPION, items, GateSpec(confidence=0.99)).outcome is Outcome.INCONCLUSIVE
    assert "99 % interval" in decide(NO_CHAMPION, items, GateSpec(confidence=0.99)).reasons[0]


def test_models_that_were_asked_different_prompts_are_not_compared():
    items = target(3, 92)
    items[7] = items[7].model_copy(update={"prompt_sha256": "other"})
    with pytest.raises(
        UserError, match=r"target suite, target.jsonl:7: candidate and base were not asked the same on 1"
    ):
        decide(NO_CHAMPION, items, GateSpec())


def test_items_of_one_model_alone_are_named_at_most_five():
    items = target(3, 92) + [one("target", f"b:{row}", "candidate") for row in range(8)]
    with pytest.raises(UserError, match=r"target suite, b:0, b:1, b:2, b:3, b:4 and 3 more: 8 items"):
        decide(NO_CHAMPION, items, GateSpec())


@pytest.mark.parametrize(
    ("report", "items", "message"),
    [
        (NO_CHAMPION, [], "no results of candidate on the target suite"),
        (WITH_CHAMPION, target(3, 92), "no results of champion on the target suite"),
        (NO_CHAMPION, [*target(3, 92), one("retention", "r:1", "candidate")], "no results of base on the retention"),
        (NO_CHAMPION, losses([(1.0, 1)] * 3, [(1.0, 1)] * 3), "3 answers were not scored for exact_match"),
    ],
)
def test_verdict_without_data_is_refused(report, items, message):
    with pytest.raises(UserError, match=message):
        decide(report, items, GateSpec())


def test_loss_of_a_single_item_is_refused():
    with pytest.raises(UserError, match="hold out more rows"):
        decide(NO_CHAMPION, losses([(2.0, 1)], [(1.0, 1)]), GateSpec(metric="held_out_loss"))


def test_every_figure_of_a_verdict_is_finite():
    """A verdict is stored as JSON, which has no infinities."""
    verdict = decide(NO_CHAMPION, target(0, 100) + retention(0, 0), GateSpec())
    figures = [value for check in verdict.checks for value in (check.estimate, check.low, check.high)]
    assert all(math.isfinite(value) for value in figures)
