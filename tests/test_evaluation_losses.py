"""The held-out loss against a forward pass per row, and the probes that the server is compared with."""

from pathlib import Path

import pytest
import torch
from evaluation_models import plain_answer, plain_logprobs, read_items_of
from tiny_model import make_prepared, make_tiny_base
from transformers import PreTrainedModel

from evaluation import losses
from evaluation.generation import Limits
from evaluation.loading import load_model
from evaluation.losses import LabelledTokens, answer_losses, learned_logprobs
from evaluation.probes import ANSWER_TOKENS, make_probes, spread
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> PreTrainedModel:
    return load_model(base, "float32")


@pytest.fixture(scope="module")
def items(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedItem]:
    prepared = make_prepared(tmp_path_factory.mktemp("prepared"), base, train_rows=4, held_out_rows=12)
    return read_items_of(prepared / PreparedData.HELD_OUT)


@pytest.fixture(scope="module")
def rows(items: list[PreparedItem]) -> list[LabelledTokens]:
    """Rows of several lengths, one of them with an earlier turn that is learned too."""
    rows = [LabelledTokens(item.input_ids, item.labels) for item in items]
    earlier_turn = [*[IGNORED_LABEL] * 3, *rows[0].input_ids[3:6], *rows[0].labels[6:]]
    return [LabelledTokens(rows[0].input_ids, earlier_turn), *rows[1:]]


def learned_positions(row: LabelledTokens) -> list[int]:
    return [position for position, label in enumerate(row.labels) if label != IGNORED_LABEL]


@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_logprobs_are_those_of_a_forward_pass_per_row(
    model: PreTrainedModel, rows: list[LabelledTokens], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "TOKEN_BUDGET", budget)
    for row, values in zip(rows, learned_logprobs(model, rows), strict=True):
        assert values == pytest.approx(plain_logprobs(model, row.input_ids, learned_positions(row)), abs=TOLERANCE)


def test_the_loss_of_a_row_sums_over_its_learned_tokens_only(
    model: PreTrainedModel, rows: list[LabelledTokens]
) -> None:
    finished: list[int] = []
    measured = answer_losses(model, rows, finished.append)
    assert [loss.tokens for loss in measured] == [len(learned_positions(row)) for row in rows]
    for row, loss in zip(rows, measured, strict=True):
        assert loss.nll == pytest.approx(-sum(plain_logprobs(model, row.input_ids, learned_positions(row))), abs=1e-4)
    assert sum(finished) == len(rows)


def test_the_loss_is_the_one_that_transformers_computes_for_training(
    model: PreTrainedModel, rows: list[LabelledTokens]
) -> None:
    for row, loss in zip(rows, answer_losses(model, rows), strict=True):
        with torch.inference_mode():
            mean = model(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert loss.nll / loss.tokens == pytest.approx(float(mean), abs=TOLERANCE)


def test_logits_are_made_only_where_an_answer_is(base: Path, items: list[PreparedItem]) -> None:
    model = load_model(base, "float32")
    positions: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: positions.append(logits.shape[1]))
    row = LabelledTokens(items[0].input_ids, items[0].labels)
    answer_losses(model, [row])
    assert positions == [len(items[0].answer_ids)]


def test_a_bfloat16_model_is_scored_in_bfloat16_with_a_float32_softmax(base: Path, rows: list[LabelledTokens]) -> None:
    model = load_model(base, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    row = rows[1]
    values = learned_logprobs(model, [row])[0]
    assert values == pytest.approx(plain_logprobs(model, row.input_ids, learned_positions(row)), abs=0.02)
    assert values != torch.tensor(values).bfloat16().tolist(), "the log-probabilities were rounded to bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probes_hold_the_models_own_greedy_answer_and_its_logprobs(
    base: Path, items: list[PreparedItem], dtype: str
) -> None:
    model = load_model(base, dtype)
    stop_ids = (plain_answer(model, items[0].prompt_ids, 8, ())[4],)
    probes = make_probes(model, items, 4, Limits(stop_ids, 128, 512))
    assert len({probe.id for probe in probes}) == 4
    by_id = {item.row_id: item for item in items}
    for probe in probes:
        assert probe.prompt_ids == by_id[probe.id].prompt_ids
        assert [message.as_chat() for message in probe.messages] == [
            {"role": "user", "content": model_question(by_id[probe.id])}
        ]
        sequence = [*probe.prompt_ids, *probe.answer_ids]
        direct = plain_logprobs(model, sequence, range(len(probe.prompt_ids), len(sequence)))
        assert probe.answer_logprobs == pytest.approx(direct, abs=TOLERANCE if dtype == "float32" else 0.05)
        if dtype == "float32":
            assert tuple(probe.answer_ids) == plain_answer(model, probe.prompt_ids, ANSWER_TOKENS, stop_ids)
    assert max(len(probe.answer_ids) for probe in probes) <= ANSWER_TOKENS


def model_question(item: PreparedItem) -> str:
    return item.messages.split('"content": "')[1].removesuffix('"}]')


def test_probes_spread_from_the_shortest_prompt_to_the_longest(
    model: PreTrainedModel, items: list[PreparedItem]
) -> None:
    lengths = sorted(len(item.prompt_ids) for item in items)
    probes = make_probes(model, items, 3, Limits((1,), 1, 512))
    assert [len(probe.prompt_ids) for probe in probes] == [lengths[0], lengths[5], lengths[-1]]


@pytest.mark.parametrize(
    ("total", "count", "chosen"),
    [(10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (9, 1, [0]), (0, 4, []), (5, 5, [0, 1, 2, 3, 4])],
)
def test_spread_takes_different_numbers_evenly(total: int, count: int, chosen: list[int]) -> None:
    assert spread(total, count) == chosen
