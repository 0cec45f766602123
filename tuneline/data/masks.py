"""Which tokens of a rendered conversation are learned, and whose turns they stand in.

Spans are found in the text, where prefixes can be compared exactly, and carried over to tokens by the tokenizer's own
alignment. So the ids are those of the whole text tokenised at once, and any chat template works.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.records import IGNORED_LABEL, Message
from tuneline.data.encoding import TokenizedText

TEMPLATE_ROLE = "template"
"""Whose tokens are those that are no one's words: role markers, stop tokens, the template's own sentences."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters (or tokens) from `start` up to `end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Where the words of a message stand: in characters of the text, or in its tokens."""

    role: str
    span: Span


@dataclass(frozen=True, slots=True)
class Mask:
    """Learned tokens: `labels` repeat their ids, `spans` are the learned runs in tokens."""

    labels: NDArray[np.int32]
    spans: tuple[Span, ...]
    merged_borders: int
    """Spans whose first token began before them; that token is not learned."""


def mask_spans(tokenized: TokenizedText, spans: Sequence[Span], stop_token_ids: AbstractSet[int]) -> Mask:
    """Label the tokens of the learned spans, each up to the first stop token in it.

    Args:
        tokenized: the whole text.
        spans: learned characters, in order.
        stop_token_ids: what a template puts behind a stop token (Phi-3: a second one) is never generated, so it is
            not learned.
    """
    ids = tokenized.ids
    labels = np.full(len(ids), IGNORED_LABEL, dtype=np.int32)
    learned: list[Span] = []
    merged = 0
    for span in spans:
        start, end = tokenized.token_at(span.start), tokenized.token_at(span.end)
        if start < end and tokenized.begins_before(start, span.start):
            merged, start = merged + 1, start + 1
        if start < end < len(ids) and tokenized.begins_before(end, span.end):
            merged += 1  # the token at the end also holds what follows: it stays unlearned
        end = after_stop(ids, start, end, stop_token_ids)
        labels[start:end] = ids[start:end]
        learned.append(Span(start, end))
    return Mask(labels, tuple(learned), merged)


def find_turns(text: str, messages: Sequence[Message]) -> tuple[Turn, ...] | None:
    """Find the messages' words in a rendered text, in order; None when some are not there as they were written."""
    turns: list[Turn] = []
    position = 0
    for message in messages:
        # Templates leave out the thoughts of earlier turns on purpose; those of the last one are what is learned.
        thoughts = (message.reasoning or "").strip() if message is messages[-1] else ""
        for part in (thoughts, message.content.strip(), *(call.name for call in message.tool_calls)):
            if not part:
                continue
            found = text.find(part, position)
            if found < 0:
                return None
            position = found + len(part)
            turns.append(Turn(message.role, Span(found, position)))
    return tuple(turns)


def in_tokens(turns: Sequence[Turn], tokenized: TokenizedText) -> tuple[Turn, ...]:
    """Carry turns from characters to tokens."""
    return tuple(
        Turn(turn.role, Span(tokenized.token_at(turn.span.start), tokenized.token_at(turn.span.end))) for turn in turns
    )


def count_by_role(turns: Sequence[Turn], labels: NDArray[np.int32]) -> tuple[dict[str, int], dict[str, int]]:
    """Count tokens, and learned tokens, by the role whose words they are; `turns` are in tokens."""
    learned = labels != IGNORED_LABEL
    counts: dict[str, int] = {}
    learned_counts: dict[str, int] = {}
    for turn in turns:
        inside = learned[turn.span.start : turn.span.end]
        counts[turn.role] = counts.get(turn.role, 0) + len(inside)
        learned_counts[turn.role] = learned_counts.get(turn.role, 0) + int(np.count_nonzero(inside))
    counts[TEMPLATE_ROLE] = len(labels) - sum(counts.values())
    learned_counts[TEMPLATE_ROLE] = int(np.count_nonzero(learned)) - sum(learned_counts.values())
    return counts, learned_counts


def after_stop(ids: NDArray[np.int32], start: int, end: int, stop_token_ids: AbstractSet[int]) -> int:
    """Return the place after the first stop token of a run; its end when there is none."""
    places = [np.flatnonzero(ids[start:end] == stop)[:1] for stop in stop_token_ids]
    return min((start + int(place[0]) + 1 for place in places if len(place)), default=end)
