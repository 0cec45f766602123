"""Greedy answers: batches, padding and rounds change nothing of what a model answers alone."""

from pathlib import Path

import pytest
import torch
from evaluation_models import plain_answer, read_items_of
from tiny_model import make_prepared, make_tiny_base
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedModel

from evaluation import generation
from evaluation.generation import FIRST_ROUND_TOKENS, Limits, greedy_answers
from evaluation.loading import load_model
from tuneline.contracts.artifacts import PreparedData

NEVER = (1_000_000,)
"""A stop token that no model knows."""
MAX_NEW_TOKENS = FIRST_ROUND_TOKENS + 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> PreTrainedModel:
    return load_model(base, "float32")


@pytest.fixture(scope="module")
def prompts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    prepared = make_prepared(tmp_path_factory.mktemp("prepared"), base, train_rows=4, held_out_rows=12)
    prompts = [item.prompt_ids for item in read_items_of(prepared / PreparedData.HELD_OUT)]
    return [prompt[index % 3 :] for index, prompt in enumerate(prompts)]  # as many lengths as there can be


@pytest.fixture(scope="module")
def alone(model: PreTrainedModel, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [plain_answer(model, prompt, MAX_NEW_TOKENS, NEVER) for prompt in prompts]


def test_batched_answers_are_those_of_each_prompt_alone(
    model: PreTrainedModel, prompts: list[list[int]], alone: list[tuple[int, ...]]
) -> None:
    assert len({len(prompt) for prompt in prompts}) > 2, "padding would not be tested"
    answers = greedy_answers(model, prompts, Limits(NEVER, MAX_NEW_TOKENS, 512))
    assert [answer.token_ids for answer in answers] == alone
    assert not any(answer.stopped for answer in answers)


def test_small_batches_give_the_answers_of_large_ones(
    model: PreTrainedModel, prompts: list[list[int]], alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "CPU_BATCH_TOKENS", 150)
    finished: list[int] = []
    answers = greedy_answers(model, prompts, Limits(NEVER, MAX_NEW_TOKENS, 512), finished.append)
    assert [answer.token_ids for answer in answers] == alone
    assert sum(finished) == len(prompts)
    assert len(finished) > len(prompts) / 2, "the budget made no small batches"


def test_an_answer_ends_with_its_first_stop_token_and_is_unfinished_without_one(
    model: PreTrainedModel, prompts: list[list[int]], alone: list[tuple[int, ...]]
) -> None:
    stop_ids = (alone[0][5], alone[1][FIRST_ROUND_TOKENS + 2])
    expected = [plain_answer(model, prompt, MAX_NEW_TOKENS, stop_ids) for prompt in prompts]
    answers = greedy_answers(model, prompts, Limits(stop_ids, MAX_NEW_TOKENS, 512))
    assert [answer.token_ids for answer in answers] == expected
    assert [answer.stopped for answer in answers] == [tokens[-1] in stop_ids for tokens in expected]
    assert len(answers[0].token_ids) <= 6


def test_an_answer_does_not_outgrow_the_context_and_the_others_do_not_notice(
    model: PreTrainedModel, prompts: list[list[int]], alone: list[tuple[int, ...]]
) -> None:
    context = max(map(len, prompts)) + 2
    answers = greedy_answers(model, prompts, Limits(NEVER, 6, context))
    room = [min(6, context - len(prompt)) for prompt in prompts]
    assert min(room) == 2 < max(room)
    assert [answer.token_ids for answer in answers] == [
        tokens[:count] for tokens, count in zip(alone, room, strict=True)
    ]


def test_too_large_a_batch_is_halved_and_answers_the_same(
    base: Path, prompts: list[list[int]], alone: list[tuple[int, ...]]
) -> None:
    model = load_model(base, "float32")

    def refuse_more_than_four_rows(module: torch.nn.Module, inputs: object, named: dict[str, torch.Tensor]) -> None:
        if named["input_ids"].shape[0] > 4:
            raise torch.OutOfMemoryError

    model.register_forward_pre_hook(refuse_more_than_four_rows, with_kwargs=True)
    answers = greedy_answers(model, prompts, Limits(NEVER, 4, 512))
    assert [answer.token_ids for answer in answers] == [tokens[:4] for tokens in alone]


def test_the_models_own_sampling_defaults_do_not_bend_greedy_answers(
    tmp_path: Path, prompts: list[list[int]], alone: list[tuple[int, ...]], base: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.generation_config = GenerationConfig(repetition_penalty=1.8, do_sample=True, temperature=0.7, eos_token_id=1)
    model.save_pretrained(tmp_path)
    answers = greedy_answers(load_model(tmp_path, "float32"), prompts, Limits(NEVER, MAX_NEW_TOKENS, 512))
    assert [answer.token_ids for answer in answers] == alone
