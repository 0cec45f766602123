"""Rows as every stage understands them: a conversation, and the columns of the prepared data sets."""

from typing import Final, Literal

from tuneline.contracts.artifacts import Record

IGNORED_LABEL: Final = -100
"""Label of a token that is read but not learned (the ignore index of torch's cross entropy)."""


class Message(Record):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(Record):
    """Messages with the name of the row they came from (`file:line`)."""

    row_id: str
    messages: tuple[Message, ...]


class PreparedRow(Record):
    """A row of `PreparedData.TRAIN`: token ids of the whole conversation; `labels` repeat the learned ones."""

    row_id: str
    input_ids: list[int]
    labels: list[int]


class PreparedItem(PreparedRow):
    """A row of `PreparedData.HELD_OUT` and `RETENTION`: a conversation whose last answer is asked for.

    `prompt_ids + answer_ids` is the whole conversation; `answer_ids` ends with the template's end of turn.
    """

    messages: str
    """The prompt's messages as a JSON list of `{role, content}`."""
    answer: str
    """The wanted text."""
    prompt_ids: list[int]
    answer_ids: list[int]
