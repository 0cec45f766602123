"""Questions for the served image, with what the merged model answers in the dtype that is served."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.generation import Limits, greedy_answers
from evaluation.losses import LabelledTokens, learned_logprobs
from tuneline.contracts.records import IGNORED_LABEL, Message, PreparedItem, Probe

ANSWER_TOKENS = 64
"""Longest answer of a probe; later tokens add little to the comparison, and each costs time on the server."""
OPENING_TOKENS = 32
"""Of a plain text, so many are asked."""
NO_MESSAGES = "[]"
"""`PreparedItem.messages` of a plain text."""


def make_probes(model: PreTrainedModel, items: Sequence[PreparedItem], count: int, limits: Limits) -> list[Probe]:
    """Answer `count` items (all, when there are fewer), spread from the shortest to the longest prompt.

    An answer that takes more than `ANSWER_TOKENS` is cut there.
    """
    by_length = sorted(items, key=lambda item: len(item.prompt_ids))
    chosen = [by_length[index] for index in spread(len(items), count)]
    capped = Limits(limits.stop_token_ids, min(ANSWER_TOKENS, limits.max_new_tokens), limits.context_tokens)
    answers = [answer.token_ids for answer in greedy_answers(model, [item.prompt_ids for item in chosen], capped)]
    logprobs = learned_logprobs(model, [_labelled(item, ids) for item, ids in zip(chosen, answers, strict=True)])
    return [
        Probe(
            id=item.row_id,
            messages=TypeAdapter(tuple[Message, ...]).validate_json(item.messages),
            tools=item.tools,
            prompt_ids=item.prompt_ids,
            answer_ids=list(ids),
            answer_logprobs=values,
        )
        for item, ids, values in zip(chosen, answers, logprobs, strict=True)
    ]


def as_questions(items: Sequence[PreparedItem], tokenizer: PreTrainedTokenizerBase) -> list[PreparedItem]:
    """Turn plain texts into messages that begin as they do, so that a served model can be asked; others stay."""
    return [item if item.messages != NO_MESSAGES else _question(item, tokenizer) for item in items]


def _question(item: PreparedItem, tokenizer: PreTrainedTokenizerBase) -> PreparedItem:
    opening = str(tokenizer.decode(item.input_ids[:OPENING_TOKENS], skip_special_tokens=True))
    messages = [{"role": "user", "content": opening}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return item.model_copy(update={"messages": json.dumps(messages), "prompt_ids": prompt_ids})


def spread(total: int, count: int) -> list[int]:
    """Choose up to `count` of the numbers below `total`, evenly spaced, the first and the last among them."""
    if count >= total:
        return list(range(total))
    return [(total - 1) * step // max(count - 1, 1) for step in range(count)]


def write_probes(path: Path, probes: Iterable[Probe]) -> None:
    """Write one line per probe."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(probe.model_dump_json() + "\n" for probe in probes)


def _labelled(item: PreparedItem, answer_ids: Sequence[int]) -> LabelledTokens:
    return LabelledTokens([*item.prompt_ids, *answer_ids], [IGNORED_LABEL] * len(item.prompt_ids) + [*answer_ids])
