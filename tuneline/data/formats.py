"""Rows to conversations; a row that is none is a problem with its name, never a silent skip."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import ValidationError

from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.records import Conversation, Message
from tuneline.contracts.spec import DataSpec
from tuneline.data.sources import SourceRow, require_columns

SHOWN_ROWS = 5
"""Bad rows that an error lists by name; the rest are counted."""

In = TypeVar("In")
Out = TypeVar("Out")


class BadRow(ValueError):
    """A row that cannot be used: the message says why."""


def to_conversations(rows: list[SourceRow], spec: DataSpec, where: str) -> list[Conversation]:
    """Read each row as the config says.

    Raises:
        UserError: naming missing columns, or the first rows that are no conversations and how many there are.
    """
    if spec.format == "messages":
        require_columns(rows, {"data.messages_column": spec.messages_column}, where)
    else:
        columns = {"data.prompt_column": spec.prompt_column, "data.completion_column": spec.completion_column}
        require_columns(rows, columns, where)
    return map_rows(rows, lambda row: _conversation(row, spec), lambda row: row.row_id)


def map_rows(rows: Iterable[In], convert: Callable[[In], Out], name: Callable[[In], str]) -> list[Out]:
    """Convert every row, and raise one `UserError` for all that raise `BadRow`."""
    converted: list[Out] = []
    bad: list[Problem] = []
    for row in rows:
        try:
            converted.append(convert(row))
        except BadRow as error:
            bad.append(Problem(str(error), name(row)))
    if len(bad) > SHOWN_ROWS:
        bad[SHOWN_ROWS:] = [Problem(f"and {len(bad) - SHOWN_ROWS:,} more rows like these")]
    if bad:
        raise UserError([*bad, Problem("nothing was prepared", fix="mend or remove these rows, then run again")])
    return converted


def _conversation(row: SourceRow, spec: DataSpec) -> Conversation:
    if spec.format == "messages":
        messages = _chat(row.values[spec.messages_column], spec.messages_column)
    else:
        prompt = _text(row, spec.prompt_column)
        user = Message(role="user", content=spec.prompt_template.replace("{prompt}", prompt))
        messages = (user, Message(role="assistant", content=_text(row, spec.completion_column)))
    if spec.system_prompt is not None and messages[0].role != "system":
        messages = (Message(role="system", content=spec.system_prompt), *messages)
    return Conversation(row_id=row.row_id, messages=messages)


def _text(row: SourceRow, column: str) -> str:
    value = row.values.get(column)
    if value is None:
        raise BadRow(f"column `{column}` is absent")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"column `{column}` holds a {type(value).__name__} where text is needed")
    text = str(value)
    if not text.strip():
        raise BadRow(f"column `{column}` is empty")
    return text


def _chat(value: object, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"column `{column}` holds no list of messages")
    try:
        messages = tuple(Message.model_validate(item) for item in value)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRow(f"a message in `{column}` is wrong: {first['msg']} ({first['loc']})") from None
    if messages[-1].role != "assistant":
        raise BadRow(f"the last message is of role `{messages[-1].role}`: there is no answer to learn")
    if any(message.role == "assistant" and not message.content.strip() for message in messages):
        raise BadRow("an assistant message is empty")
    return messages
