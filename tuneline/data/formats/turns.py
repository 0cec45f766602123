"""Lists of turns in the two dialects that there are: `{role, content}` (OpenAI) and `{from, value}` (ShareGPT)."""

from typing import Final, Literal, TypedDict, cast

from tuneline.contracts.records import Message, ToolCall
from tuneline.data.formats.cells import kind_of, listed, nearest, parse_json, shown, whole_text
from tuneline.data.formats.tools import optional_text, read_calls
from tuneline.data.rows import UnusableRow

Dialect = Literal["messages", "sharegpt"]
Role = Literal["system", "developer", "user", "assistant", "tool"]
Turn = dict[str, object]

ROLES: Final[dict[Dialect, dict[str, Role]]] = {
    "messages": {
        "system": "system",
        "developer": "developer",
        "user": "user",
        "assistant": "assistant",
        "tool": "tool",
        "function": "tool",
    },
    "sharegpt": {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "model": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "function_call": "assistant",
        "observation": "tool",
        "tool": "tool",
    },
}
_KEYS: Final[dict[Dialect, tuple[str, str]]] = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
_OTHER: Final[dict[Dialect, Dialect]] = {"messages": "sharegpt", "sharegpt": "messages"}
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


def turn_list(value: object, column: str) -> list[object]:
    """Return the turns of a cell: a list, JSON text of one (as in CSV), or a single turn.

    Raises:
        UnusableRow: it is none of these, or holds no turn.
    """
    turns = parse_json(value, column) if isinstance(value, str) else value
    if isinstance(turns, dict):
        return [turns]
    if not isinstance(turns, list):
        raise UnusableRow(f"`{column}` holds {kind_of(turns)} where a list of messages is needed")
    if not turns:
        raise UnusableRow(f"`{column}` holds no message")
    return turns


def dialect_of(turns: list[object]) -> Dialect:
    """Tell the dialect by the first turn; Arrow fills keys of the other one with null."""
    first = turns[0]
    return "sharegpt" if isinstance(first, dict) and first.get("from") is not None else "messages"


def read_turns(turns: list[object], column: str, dialect: Dialect | None = None) -> tuple[Message, ...]:
    """Read turns; `dialect` None takes the one that they are in.

    Consecutive `function_call` turns become one assistant turn with several calls.

    Raises:
        UnusableRow: a turn is malformed, named as `column[index]` (from 0), or a tool answers nobody.
    """
    dialect = dialect or dialect_of(turns)
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        where = f"{column}[{index}]"
        message = _read_turn(turn, where, dialect)
        if message.role == "tool" and (not messages or messages[-1].role not in ("assistant", "tool")):
            raise UnusableRow(f"`{where}` is the answer of a tool, but no assistant turn is before it")
        if message.tool_calls and dialect == "sharegpt" and messages and _makes_one(messages[-1], message):
            calls = messages[-1].tool_calls + message.tool_calls
            messages[-1] = messages[-1].model_copy(update={"tool_calls": calls})
        else:
            messages.append(message)
    return tuple(messages)


def _makes_one(before: Message, message: Message) -> bool:
    return bool(before.tool_calls) and before.weight == message.weight and not (before.content or message.reasoning)


def _read_turn(turn: object, where: str, dialect: Dialect) -> Message:
    if not isinstance(turn, dict):
        raise UnusableRow(f"`{where}` is {kind_of(turn)}, no message")
    role_key, text_key = _KEYS[dialect]
    speaker = turn.get(role_key)
    role = ROLES[dialect].get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise UnusableRow(_bad_role(turn, speaker, where, dialect))
    text = turn.get(text_key)
    if len(turn) > 2 or not isinstance(text, str) or speaker == "function_call":
        return _full_message(turn, role, where, dialect)
    return Message(role=role, content=text if text.isascii() else whole_text(text, f"{where}.{text_key}"))


def _bad_role(turn: Turn, speaker: object, where: str, dialect: Dialect) -> str:
    key, _ = _KEYS[dialect]
    if speaker is None:
        other = _OTHER[dialect]
        hint = f"; data.format {other} reads `{_KEYS[other][0]}`" if turn.get(_KEYS[other][0]) is not None else ""
        return f"`{where}` has no `{key}`; its keys are {listed(turn)}{hint}"
    if not isinstance(speaker, str):
        return f"`{where}.{key}` holds {kind_of(speaker)} where text is needed"
    near = nearest(speaker.lower(), ROLES[dialect])
    hint = f", the nearest is `{near}`" if near else ""
    return f"`{where}.{key}` is the unknown role `{shown(speaker)}`{hint}; roles are {', '.join(ROLES[dialect])}"


def _full_message(turn: Turn, role: Role, where: str, dialect: Dialect) -> Message:
    is_call = dialect == "sharegpt" and turn["from"] == "function_call"
    calls = _calls(turn, where, is_call)
    if calls and role != "assistant":
        raise UnusableRow(f"`{where}` calls a tool, but only assistant turns do")
    content = "" if is_call else _content(turn, where, _KEYS[dialect][1], bool(calls))
    extras = _extras(turn, where) if len(turn) > 2 else _Extras()
    return Message(role=role, content=content, tool_calls=calls, **extras)


class _Extras(TypedDict, total=False):
    reasoning: str | None
    name: str | None
    tool_call_id: str | None
    weight: Literal[0, 1] | None


def _extras(turn: Turn, where: str) -> _Extras:
    thoughts = (optional_text(turn.get(key), f"{where}.{key}") for key in _REASONING)
    return {
        "reasoning": next((text for text in thoughts if text), None),
        "name": optional_text(turn.get("name"), f"{where}.name"),
        "tool_call_id": optional_text(turn.get("tool_call_id"), f"{where}.tool_call_id"),
        "weight": _weight(turn.get("weight"), where),
    }


def _calls(turn: Turn, where: str, is_call: bool) -> tuple[ToolCall, ...]:
    if is_call:
        calls = read_calls(turn.get("value"), f"{where}.value")
        if not calls:
            raise UnusableRow(f"`{where}.value` holds no call")
        return calls
    key = next((key for key in ("tool_calls", "function_call") if turn.get(key)), None)
    return () if key is None else read_calls(turn[key], f"{where}.{key}")


def _content(turn: Turn, where: str, key: str, has_calls: bool) -> str:
    value = turn.get(key)
    where = f"{where}.{key}"
    if isinstance(value, str):
        return whole_text(value, where)
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))
    if value is None and has_calls:
        return ""
    if value is None and key not in turn:
        raise UnusableRow(f"`{where}` is missing; the keys are {listed(turn)}")
    raise UnusableRow(f"`{where}` holds {kind_of(value)} where text is needed")


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise UnusableRow(f"`{where}` is {kind_of(part)}, no content part with a type")
    if kind != "text":
        raise UnusableRow(f"`{where}` is a part of type `{shown(kind)}`: only text is trained")
    text = part.get("text")
    if not isinstance(text, str):
        raise UnusableRow(f"`{where}.text` holds {kind_of(text)} where text is needed")
    return whole_text(text, where)


def _weight(value: object, where: str) -> Literal[0, 1] | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or value not in (0, 1):
        raise UnusableRow(f"`{where}.weight` must be 0 or 1")
    return cast(Literal[0, 1], int(value))
