"""Rows as every stage understands them: messages, examples, the columns of the prepared data sets, and the probes."""

import json
from typing import Any, Final, Literal, Self

from pydantic import model_validator

from tuneline.contracts.artifacts import Record

IGNORED_LABEL: Final = -100
"""Label of a token that is read but not learned (the ignore index of torch's cross entropy)."""

Kind = Literal["conversation", "text", "preference", "unpaired_preference"]
"""What an example teaches: answers, plain text, which of two answers is better, whether an answer is wanted."""


class ToolCall(Record):
    """A call that an assistant turn makes; `arguments` is the text of a JSON object."""

    name: str
    arguments: str
    id: str | None = None


class Message(Record):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    reasoning: str | None = None
    """What the model thought before `content`, where the template has a place for it."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Name of the tool that answers (role `tool`)."""
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    """1: learned, 0: only read, whatever `data.learn` says; None: as `data.learn` says."""

    def as_chat(self, *, arguments_as_text: bool = False) -> dict[str, Any]:
        """Write the turn as chat templates read it; as the chat API does with `arguments_as_text`."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            chat["reasoning_content"] = self.reasoning
        if self.tool_calls:
            chat["tool_calls"] = [_call_as_chat(call, arguments_as_text) for call in self.tool_calls]
        if self.name is not None:
            chat["name"] = self.name
        if self.tool_call_id is not None:
            chat["tool_call_id"] = self.tool_call_id
        return chat


def _call_as_chat(call: ToolCall, arguments_as_text: bool) -> dict[str, Any]:
    arguments = call.arguments if arguments_as_text else json.loads(call.arguments)
    chat = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return chat if call.id is None else {**chat, "id": call.id}


class Example(Record):
    """A source row in the one shape that all formats are read into.

    `messages` is a whole conversation, the wanted answer last; it is empty for kind `text`, which has `text` instead.
    """

    row_id: str
    """`file:line`, or `file#row` where the format has no lines."""
    kind: Kind
    format: str
    """How the row was read (`data.format`, detected when that is `auto`)."""
    messages: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    """The turns that are worse than the last of `messages`, in its place (kind `preference`)."""
    desirable: bool | None = None
    """Whether the last answer is wanted (kind `unpaired_preference`)."""
    text: str | None = None
    tools: str | None = None
    """The tools that the model is told of, as the text of a JSON list."""


class PreparedRow(Record):
    """A row of `PreparedData.TRAIN`: token ids of the whole example; `labels` repeat the learned ones."""

    row_id: str
    input_ids: list[int]
    labels: list[int]
    rejected_input_ids: list[int] | None = None
    """The same conversation with the worse answer (kind `preference`)."""
    rejected_labels: list[int] | None = None
    desirable: bool | None = None
    """Whether the answer is wanted (kind `unpaired_preference`)."""


class PreparedItem(PreparedRow):
    """A row of `PreparedData.HELD_OUT` and `RETENTION`: a conversation whose last answer is asked for.

    `prompt_ids + answer_ids` is `input_ids`; `answer_ids` ends with the template's end of turn.
    """

    messages: str
    """The prompt's messages as the text of a JSON list of `Message`."""
    answer: str
    """The wanted text."""
    prompt_ids: list[int]
    answer_ids: list[int]
    tools: str | None = None
    """The tools that the model is told of, as the text of a JSON list."""


class Probe(Record):
    """A line of `EvalReport.PROBES`: a held-out conversation and what the merged model answers to it, greedily."""

    id: str
    messages: tuple[Message, ...]
    tools: str | None = None
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
