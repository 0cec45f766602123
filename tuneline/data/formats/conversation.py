"""Conversations of prompt and answer columns, the system message, and whether the turns make sense."""

from collections.abc import Mapping

from tuneline.contracts.records import Message
from tuneline.data.formats.cells import is_blank, kind_of, parse_json, text_cell
from tuneline.data.formats.detect import Layout
from tuneline.data.formats.template import fill
from tuneline.data.formats.turns import read_turns, turn_list
from tuneline.data.rows import UnusableRow

Values = Mapping[str, object]
Messages = tuple[Message, ...]
_SYSTEM = ("system", "developer")


def read_prompt(values: Values, layout: Layout) -> Messages:
    """Read the prompt of a prompt and its answer: text for the template, or a list of messages.

    Raises:
        UnusableRow: it is neither, or text without content in a row that has no system message either.
    """
    value = None if layout.prompt is None else values.get(layout.prompt)
    if isinstance(value, list) and layout.prompt is not None:
        if not layout.template.is_plain:
            raise UnusableRow(
                f"prompt_template makes a message of text, but `{layout.prompt}` holds a list of messages"
            )
        return read_turns(turn_list(value, layout.prompt), layout.prompt)
    has_system = layout.system is not None and bool(system_text(values, layout))
    return (Message(role="user", content=fill(layout.template, values, layout.prompt, has_system)),)


def read_answer(value: object, column: str) -> Messages:
    """Read an answer: text, one turn, or a list of them; the first is the assistant's.

    Raises:
        UnusableRow: it is none of these.
    """
    if not isinstance(value, dict | list):
        return (Message(role="assistant", content=text_cell(value, column)),)
    return read_turns(turn_list(value, column), column)


def read_prompt_and_answer(values: Values, layout: Layout) -> Messages:
    """Read a row of prompt and completion.

    Raises:
        UnusableRow: a part is missing or of a wrong type, or the completion does not begin with an assistant turn.
    """
    assert layout.completion is not None
    value = values.get(layout.completion)
    if isinstance(value, dict):
        raise UnusableRow(f"`{layout.completion}` holds {kind_of(value)} where text or a list of messages is needed")
    answer = read_answer(value, layout.completion)
    if answer[0].role != "assistant":
        raise UnusableRow(f"`{layout.completion}[0]` is of role `{answer[0].role}`, no answer")
    return read_prompt(values, layout) + answer


def read_alpaca(values: Values, layout: Layout) -> Messages:
    """Read instruction, input and output, after the turns of `history`.

    Raises:
        UnusableRow: a part is missing or of a wrong type, or there is no prompt.
    """
    assert layout.prompt is not None and layout.completion is not None
    history = _history(values.get("history"))
    parts = [text_cell(values.get(layout.prompt), layout.prompt)]
    if values.get("input") is not None and "input" not in (layout.prompt, layout.completion):
        parts.append(text_cell(values["input"], "input"))
    prompt = "\n\n".join(part for part in parts if not is_blank(part))
    if not prompt and not history and not system_text(values, layout):
        raise UnusableRow(f"the prompt `{layout.prompt}` is empty")
    answer = text_cell(values.get(layout.completion), layout.completion)
    return (*history, Message(role="user", content=prompt), Message(role="assistant", content=answer))


def _history(value: object) -> Messages:
    pairs = parse_json(value, "history") if isinstance(value, str) and not is_blank(value) else value or []
    if not isinstance(pairs, list):
        raise UnusableRow(f"`history` holds {kind_of(pairs)} where a list of [question, answer] is needed")
    messages: list[Message] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnusableRow(f"`history[{index}]` is no [question, answer]")
        messages.append(Message(role="user", content=text_cell(pair[0], f"history[{index}][0]")))
        messages.append(Message(role="assistant", content=text_cell(pair[1], f"history[{index}][1]")))
    return tuple(messages)


def system_text(values: Values, layout: Layout) -> str | None:
    """Return the text of the system column, None when it is absent, null or blank."""
    value = None if layout.system is None else values.get(layout.system)
    if value is None or layout.system is None:
        return None
    text = text_cell(value, layout.system)
    return None if is_blank(text) else text


def with_system(messages: Messages, values: Values, layout: Layout) -> Messages:
    """Put the row's system message before its turns.

    Raises:
        UnusableRow: the turns have another one.
    """
    text = system_text(values, layout)
    if text is None:
        return messages
    own = next((message for message in messages if message.role in _SYSTEM), None)
    if own is None:
        return (Message(role="system", content=text), *messages)
    if text != own.content:
        raise UnusableRow(f"there are two system messages: in `{layout.system}` and among the turns")
    return messages


def with_default_system(messages: Messages, text: str | None) -> Messages:
    """Put the config's system message before a conversation that has none."""
    if text is None or any(message.role in _SYSTEM for message in messages):
        return messages
    return (Message(role="system", content=text), *messages)


def check_conversation(messages: Messages, prompt_messages: int) -> None:
    """Check that an answer is at the end, and that something is said before it.

    Raises:
        UnusableRow: the last message is not the assistant's, or nobody else spoke, or only white space.
    """
    if messages[-1].role != "assistant":
        raise UnusableRow(f"the last message is of role `{messages[-1].role}`: there is no assistant answer at the end")
    prompt = messages[:prompt_messages]
    if prompt and prompt[-1].role != "assistant" and not is_blank(prompt[-1].content):
        return
    if all(message.role == "assistant" for message in prompt):
        raise UnusableRow("nothing but assistant turns: there is no prompt before the answer")
    if all(is_blank(message.content) for message in prompt):
        raise UnusableRow("the prompt is empty: no message before the answer has content")
