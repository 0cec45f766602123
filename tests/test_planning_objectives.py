from collections.abc import Mapping
from typing import Any

import pytest
from planning_cases import LAPTOP, TINY, data_of, spec_of

from tuneline.contracts.artifacts import Plan, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.objectives import LossWeights, loss_weights, objective_of
from tuneline.planning.model_shape import shape_from_config
from tuneline.planning.plan import make_plan

TINY_SHAPE = shape_from_config("tiny", TINY)
LOSS_ONLY = {"evaluation": {"generate": False}, "gate": {"metric": "held_out_loss"}}


def rows_of(kind: str, **changes: Any) -> PreparedData:
    """Describe 960 rows: pairs whose worse answers are as long as the better ones, or answers half of them wanted."""
    data = data_of(960, mean=60, longest=100)
    extra: Mapping[str, Any] = {
        "preference": {"rejected_tokens": data.train_tokens, "longest_rejected_tokens": 120},
        "unpaired_preference": {"desirable_rows": 480},
    }.get(kind, {})
    return data.model_copy(update={"kind": kind, **extra, **changes})


def plan_of(data: PreparedData, **sections: Mapping[str, Any]) -> Plan:
    return make_plan(spec_of("tiny", **sections), TINY_SHAPE, data, LAPTOP)


def refusal(data: PreparedData, **sections: Mapping[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        plan_of(data, **sections)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("conversation", "sft"), ("text", "sft"), ("preference", "dpo"), ("unpaired_preference", "kto")],
)
def test_auto_follows_the_rows(kind, objective):
    assert objective_of("auto", kind) == objective


@pytest.mark.parametrize(
    ("kind", "asked", "fix"),
    [
        ("conversation", "dpo", "set training.objective to sft"),
        ("text", "kto", "set training.objective to sft"),
        ("preference", "sft", "set training.objective to dpo or orpo"),
        ("preference", "kto", "set training.objective to dpo or orpo"),
        ("unpaired_preference", "orpo", "set training.objective to kto"),
    ],
)
def test_an_objective_that_does_not_go_with_the_rows_is_refused_and_names_what_does(kind, asked, fix):
    message = refusal(rows_of(kind), training={"objective": asked})
    assert "training.objective, data.format" in message
    assert fix in message


def test_a_pair_is_planned_as_two_texts_as_long_as_the_longer_of_them():
    single, pairs = rows_of("conversation"), rows_of("preference")
    assert (pairs.sequences_per_row, pairs.longest_tokens, pairs.mean_row_tokens) == (2, 120, 120)
    ours, theirs = plan_of(pairs), plan_of(single)
    assert ours.optimizer_steps == theirs.optimizer_steps
    grown = ours.memory_parts_bytes["activations"] / theirs.memory_parts_bytes["activations"]
    assert grown == pytest.approx(2 * 120 / 100, rel=0.01)
    # twice the tokens, and a third pass (2N) beside the forward and backward ones (4N) for the reference
    assert ours.hours.expected / theirs.hours.expected == pytest.approx(2 * 6 / 4, rel=0.05)


def test_labelled_answers_cost_three_forward_passes_more_and_the_odds_ratio_none():
    even = data_of(960, mean=100, longest=100)  # no padding, which is more where answers are not batched by length
    labelled = plan_of(even.model_copy(update={"kind": "unpaired_preference", "desirable_rows": 480}))
    single = plan_of(even)
    assert labelled.tokens_per_second.expected / single.tokens_per_second.expected == pytest.approx(4 / 10, rel=0.02)
    dpo, orpo = (plan_of(rows_of("preference"), training={"objective": name}) for name in ("dpo", "orpo"))
    assert orpo.hours.expected / dpo.hours.expected == pytest.approx(4 / 6, rel=0.01)


def test_a_full_training_towards_preferences_keeps_a_copy_of_its_base_and_an_adapter_needs_none():
    parts = plan_of(rows_of("preference"), adapter={"method": "full"}).memory_parts_bytes
    assert parts["reference"] == 4 * TINY_SHAPE.parameters
    assert "reference" not in plan_of(rows_of("preference")).memory_parts_bytes
    orpo = plan_of(rows_of("preference"), adapter={"method": "full"}, training={"objective": "orpo"})
    assert "reference" not in orpo.memory_parts_bytes


def test_what_would_blur_the_comparison_with_the_base_is_refused_all_at_once():
    message = refusal(
        rows_of("preference"), adapter={"dropout": 0.1, "initialisation": "pissa"}, training={"packing": "on"}
    )
    for where in ("adapter.dropout", "adapter.initialisation", "training.packing"):
        assert where in message
    plan_of(rows_of("preference"), adapter={"dropout": 0.1, "initialisation": "pissa"}, training={"objective": "orpo"})


@pytest.mark.parametrize("wanted", [0, 960])
def test_answers_of_one_label_only_are_refused(wanted):
    assert f"{wanted} of 960 training rows are wanted" in refusal(rows_of("unpaired_preference", desirable_rows=wanted))


def test_a_step_of_one_row_has_no_other_answer_for_its_prompt():
    message = refusal(rows_of("unpaired_preference"), training={"effective_batch_rows": 1})
    assert "training.effective_batch_rows" in message


def test_plain_texts_are_planned_once_their_evaluation_asks_no_questions():
    assert "evaluation.generate" in refusal(rows_of("text"))
    assert plan_of(rows_of("text"), **LOSS_ONLY).optimizer_steps == 30


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [(48, 48, (1, 1)), (64, 48, (1, 1)), (32, 64, (2, 1)), (96, 24, (1, 3))],
)
def test_the_rarer_label_weighs_more_until_the_balance_is_within_one_and_four_thirds(desirable, undesirable, weights):
    found = loss_weights(desirable, undesirable)
    assert (found.desirable, found.undesirable) == pytest.approx(weights)
    assert isinstance(found, LossWeights)
