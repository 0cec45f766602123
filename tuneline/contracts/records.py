"""Rows as every stage understands them: a conversation, the columns of the prepared data sets, and the probes."""

from typing import Final, Literal, Self

from pydantic import model_validator

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


class Probe(Record):
    """A line of `EvalReport.PROBES`: a held-out conversation and what the merged model answers to it, greedily."""

    id: str
    messages: tuple[Message, ...]
    prompt_ids: list[int]
    """Token ids of the messages under the chat template, generation prompt added."""
    answer_ids: list[int]
    """Token ids of the answer, with the stop token that ended it if one did."""
    answer_logprobs: list[float]
    """Natural logarithm of each answer token's probability, given the prompt and the answer before it."""

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.answer_ids) != len(self.answer_logprobs):
            raise ValueError(f"{len(self.answer_ids)} answer ids but {len(self.answer_logprobs)} log-probabilities")
        return self
