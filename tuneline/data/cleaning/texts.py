"""An example as text, and as the keys by which two examples are found to be the same."""

from collections.abc import Iterator, Sequence
from typing import Final

import xxhash

from tuneline.contracts.records import Example, Message

SURROGATES: Final = "surrogatepass"
"""JSON can spell half a surrogate pair; such a text has no UTF-8, but it does have a key."""


def text_of(example: Example) -> str:
    """Join all of an example's text with newlines, in reading order.

    Contents, reasoning (before the content it led to), tool-call arguments, rejected turns, raw text. The list of
    tools is left out: it is the same in thousands of rows, which would make near-duplicates of them.
    """
    pieces = [piece for message in (*example.messages, *example.rejected) for piece in _pieces(message)]
    if example.text is not None:
        pieces.append(example.text)
    return "\n".join(pieces)


def _pieces(message: Message) -> Iterator[str]:
    if message.reasoning:
        yield message.reasoning
    if message.content:
        yield message.content
    for call in message.tool_calls:
        yield call.arguments


def prompt_key_text(example: Example) -> str:
    """Write down what two examples must share to have the same prompt: the tools and all before the last answer.

    A plain text is its own prompt, so that it conflicts with nothing and leaks only as a whole.
    """
    if example.text is not None:
        return _joined(["text", example.text.strip()])
    return _joined(_prompt_fields(example, _answer_index(example)))


def whole_key_text(example: Example) -> str:
    """Write down what two examples must share to be the same: prompt, answer, rejected turns, labels, weights."""
    if example.text is not None:
        return _joined(["text", example.text.strip()])
    answer = _answer_index(example)
    fields = _prompt_fields(example, answer)
    fields.append("answer")
    for message in example.messages[answer:]:
        fields += _fields(message)
    for message in example.rejected:
        fields += ["rejected", *_fields(message)]
    if example.desirable is not None:
        fields += ["desirable", str(example.desirable)]
    for index, message in enumerate(example.messages):
        if message.weight is not None:
            fields += ["weight", str(index), str(message.weight)]
    return _joined(fields)


def key_of(text: str) -> int:
    """Hash a text to 64 bits, the same on every machine (xxh3).

    Among 5 million texts two different ones share a key with probability 7e-7.
    """
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", SURROGATES))


def last_answer(messages: Sequence[Message]) -> Message | None:
    """Return the last assistant turn; None where there is none."""
    return next((message for message in reversed(messages) if message.role == "assistant"), None)


def _answer_index(example: Example) -> int:
    messages = example.messages
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            return index
    return len(messages)


def _prompt_fields(example: Example, answer: int) -> list[str]:
    fields = ["messages", example.tools or ""]
    for message in example.messages[:answer]:
        fields += _fields(message)
    return fields


def _fields(message: Message) -> list[str]:
    fields = [message.role, message.content.strip()]
    # what most turns do not have is named, which is quicker than writing down that it is not there
    if message.reasoning:
        fields += ["reasoning", message.reasoning.strip()]
    if message.name:
        fields += ["name", message.name]
    if message.tool_call_id:
        fields += ["tool_call_id", message.tool_call_id]
    for call in message.tool_calls:
        fields += ["tool_call", call.name, call.arguments, call.id or ""]
    return fields


def _joined(fields: list[str]) -> str:
    # every field with its length before it: no text can be mistaken for a border between two
    return "".join([f"{len(field)}:{field}" for field in fields])
