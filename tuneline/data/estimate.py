"""What the prepared data will amount to, from the files alone: for a plan before anything is prepared."""

from collections.abc import Sequence

from tuneline.contracts.artifacts import LengthSummary, PreparedData
from tuneline.contracts.records import Conversation
from tuneline.contracts.spec import DataSpec, RunSpec
from tuneline.data.formats import to_conversations
from tuneline.data.lengths import summarise
from tuneline.data.sources import read_rows
from tuneline.data.splitting import draw

CHARACTERS_PER_TOKEN = 3.5
"""English text under a vocabulary of 100 thousand comes to 4 to 4.5, under one of 3 thousand to 2.5 to 3."""
TEMPLATE_TOKENS_PER_MESSAGE = 5
"""Role markers and end of turn; ChatML spends 5, Llama 3 spends 4."""


def estimate_prepared(spec: RunSpec) -> PreparedData:
    """Estimate rows and tokens without a tokenizer.

    Raises:
        UserError: for files and rows that prepare would refuse too.
    """
    conversations = _conversations(spec.data)
    lengths = [min(_length_tokens(conversation), spec.data.max_length_tokens) for conversation in conversations]
    learned = sum(_tokens(conversation.messages[-1].content) for conversation in conversations)
    return PreparedData(
        train_rows=len(lengths),
        held_out_rows=0,
        retention_rows=0,
        train_tokens=sum(lengths),
        learned_tokens=min(learned, sum(lengths)),
        lengths=summarise(lengths) if lengths else LengthSummary(p50=0, p90=0, p99=0, max=0),
        stop_token_ids=(),
        template_sha256="",
        receipt_sha256="",
    )


def _conversations(spec: DataSpec) -> Sequence[Conversation]:
    rows = read_rows(spec.train, "data.train", split=spec.hub_split, revision=spec.hub_revision)
    conversations = to_conversations(draw(rows, spec.max_train_rows, spec.seed), spec, spec.train)
    kept = conversations if spec.held_out else conversations[: round(len(rows) * (1 - spec.held_out_share))]
    if spec.replay is None:
        return kept
    replay = to_conversations(read_rows(spec.replay, "data.replay"), spec, spec.replay)
    return [*kept, *replay[: round(len(kept) * spec.replay_share / (1 - spec.replay_share))]]


def _length_tokens(conversation: Conversation) -> int:
    return sum(_tokens(message.content) + TEMPLATE_TOKENS_PER_MESSAGE for message in conversation.messages)


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)
