"""Which tokens of rendered conversations are learned, and whose turns they stand in.

Spans are found in the text, where prefixes can be compared exactly, and carried over to tokens by the tokenizer's own
alignment. So the ids are those of the whole text tokenised at once, and any chat template works. All of it is done to
a whole chunk at once, which takes 5 us a row where one row after another takes 25.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.records import IGNORED_LABEL, Message
from tuneline.data.ragged import Places, offsets_of
from tuneline.data.tokenized import TokenizedTexts

TEMPLATE_ROLE = "template"
"""Whose tokens are those that are no one's words: role markers, stop tokens, the template's own sentences."""

NO_LABELS: Final = np.empty(0, dtype=np.int32)
"""Joined with the labels of a chunk's rows, since there may be none."""


class Span(NamedTuple):
    """Characters (or tokens) from `start` up to `end`; no dataclass: five for each row, at a third of the time."""

    start: int
    end: int


class Turn(NamedTuple):
    """Where the words of a message stand: in characters of the text, or in its tokens."""

    role: str
    span: Span


@dataclass(frozen=True, slots=True)
class Masks:
    """Learned tokens of texts: `labels` repeat their ids, for all texts one after another."""

    labels: NDArray[np.int32]
    last_starts: Places
    """Where the last learned run of each text begins, in tokens of the text; its end where there is none."""
    last_ends: Places
    merged_borders: Places
    """Spans of each text whose first token began before them; that token is not learned."""


def mask_spans(
    tokenized: TokenizedTexts, spans: Sequence[Sequence[Span]], stops: Collection[int], stopping: NDArray[np.bool_]
) -> Masks:
    """Label the tokens of the learned spans, each up to the first stop token in it.

    Args:
        tokenized: whole texts.
        spans: learned characters of each text, in order.
        stops: what a template puts behind a stop token (Phi-3: a second one) is never generated, so it is not learned.
        stopping: the texts in which stop tokens end what is learned.
    """
    texts, starts, ends = _flat(spans)
    first, end = tokenized.tokens_at(texts, starts), tokenized.tokens_at(texts, ends)
    early = (first < end) & tokenized.begin_before(first, texts, starts)
    first = first + early
    # A token at the end that holds what follows too stays unlearned.
    late = (first < end) & (end < tokenized.tokens[texts + 1]) & tokenized.begin_before(end, texts, ends)
    end = np.where(stopping[texts], after_stops(tokenized.ids, first, end, stops), end)
    last_starts, last_ends = np.diff(tokenized.tokens), np.diff(tokenized.tokens)
    # Of several spans of a text the last one is written last, and stays.
    last_starts[texts], last_ends[texts] = first - tokenized.tokens[texts], end - tokenized.tokens[texts]
    merged = np.bincount(texts[early], minlength=len(tokenized)) + np.bincount(texts[late], minlength=len(tokenized))
    return Masks(_labels(tokenized.ids, first, end), last_starts, last_ends, merged)


def _labels(ids: NDArray[np.int32], starts: Places, ends: Places) -> NDArray[np.int32]:
    """Repeat the ids of runs of tokens, and ignore the others."""
    runs = starts < ends
    borders = np.bincount(starts[runs], minlength=len(ids) + 1) - np.bincount(ends[runs], minlength=len(ids) + 1)
    return np.where(np.cumsum(borders)[:-1] > 0, ids, np.int32(IGNORED_LABEL))


def after_stops(ids: NDArray[np.int32], starts: Places, ends: Places, stops: Collection[int]) -> Places:
    """Find the place after the first stop token of each run; its end where there is none."""
    places = np.flatnonzero(np.isin(ids, list(stops)))
    after = np.append(places, len(ids))[np.searchsorted(places, starts)] + 1
    return np.asarray(np.minimum(ends, after))


def find_turns(text: str, messages: Sequence[Message]) -> tuple[Turn, ...] | None:
    """Find the messages' words in a rendered text, in order; None when some are not there as they were written."""
    turns: list[Turn] = []
    position = 0
    for message in messages:
        # Templates leave out the thoughts of earlier turns on purpose; those of the last one are what is learned.
        thoughts = (message.reasoning or "").strip() if message is messages[-1] else ""
        for part in (thoughts, message.content.strip(), *[call.name for call in message.tool_calls]):
            if not part:
                continue
            found = text.find(part, position)
            if found < 0:
                return None
            position = found + len(part)
            turns.append(Turn(message.role, Span(found, position)))
    return tuple(turns)


def in_tokens(turns: Sequence[Sequence[Turn]], tokenized: TokenizedTexts) -> list[tuple[Turn, ...]]:
    """Carry the turns of each text from characters to tokens."""
    texts, starts, ends = _flat([[turn.span for turn in of_text] for of_text in turns])
    first, end = (tokenized.tokens_at(texts, places) - tokenized.tokens[texts] for places in (starts, ends))
    spans = map(Span, first.tolist(), end.tolist())
    return [tuple([Turn(turn.role, span) for turn, span in zip(of_text, spans, strict=False)]) for of_text in turns]


def count_by_role(
    turns: Sequence[Sequence[Turn]], labels: Sequence[NDArray[np.int32]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Count tokens, and learned tokens, of rows by the role whose words they are; `turns` are in tokens."""
    if not labels:
        return {}, {}
    rows, starts, ends = _flat([[turn.span for turn in of_row] for of_row in turns])
    first_tokens = offsets_of([len(of_row) for of_row in labels])[rows]
    learned_before = offsets_of(np.concatenate(labels) != IGNORED_LABEL)
    roles = [turn.role for of_row in turns for turn in of_row]
    names = list(dict.fromkeys([*[turn.role for turn in turns[0]], TEMPLATE_ROLE, *roles]))
    numbers = np.array([names.index(role) for role in roles], dtype=np.int64)
    learned = learned_before[first_tokens + ends] - learned_before[first_tokens + starts]
    return (
        _by_name(names, numbers, ends - starts, len(learned_before) - 1),
        _by_name(names, numbers, learned, int(learned_before[-1])),
    )


def learned_tokens(labels: Sequence[NDArray[np.int32]]) -> Places:
    """Count the learned tokens of each row."""
    learned_before = offsets_of(np.concatenate([NO_LABELS, *labels]) != IGNORED_LABEL)
    return np.diff(learned_before[offsets_of([len(of_row) for of_row in labels])])


def last_learned(labels: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Give the last learned token of each row; there is one."""
    joined = np.concatenate([NO_LABELS, *labels])
    places = np.flatnonzero(joined != IGNORED_LABEL)
    behind = offsets_of([len(of_row) for of_row in labels])[1:]
    return joined[places[np.searchsorted(places, behind) - 1]]


def _by_name(names: Sequence[str], numbers: Places, tokens: Places, total: int) -> dict[str, int]:
    """Add up by name; what is left of the total is the template's."""
    sums = np.bincount(numbers, tokens, minlength=len(names)).astype(np.int64)
    sums[names.index(TEMPLATE_ROLE)] = total - sums.sum()
    return dict(zip(names, sums.tolist(), strict=True))


def _flat(spans: Sequence[Sequence[Span]]) -> tuple[Places, Places, Places]:
    """Lay spans of groups in flat arrays: the number of the group, start and end of each one."""
    groups = np.repeat(np.arange(len(spans)), [len(of_group) for of_group in spans])
    places = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64).reshape(-1, 2)
    return groups, places[:, 0], places[:, 1]
