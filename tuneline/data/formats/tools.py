"""Tool calls, and the tools that a model is told of, in the form in which a chat API sends them to a template."""

from functools import lru_cache

from tuneline.contracts.records import ToolCall
from tuneline.data.formats.cells import compact_json, is_blank, kind_of, parse_json, whole_text
from tuneline.data.rows import UnusableRow

CACHED_CHARACTERS = 16_384
"""Longest `tools` text that is remembered: rows repeat them, and 256 of these are 4 MB at most."""

_OUTER = ("type", "function")


def read_calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """Read a list of calls, or a single one: `{id, type, function: {name, arguments}}` or `{name, arguments}`.

    Raises:
        UnusableRow: one has no name, or arguments that are no object (or its JSON text).
    """
    calls = parse_json(value, where) if isinstance(value, str) else value
    if isinstance(calls, dict):
        return (_call(calls, where),)
    if not isinstance(calls, list):
        raise UnusableRow(f"`{where}` holds {kind_of(calls)} where a tool call is needed")
    return tuple(_call(call, f"{where}[{index}]") for index, call in enumerate(calls))


def _call(call: object, where: str) -> ToolCall:
    if not isinstance(call, dict):
        raise UnusableRow(f"`{where}` holds {kind_of(call)} where a tool call is needed")
    function = call.get("function")
    name, arguments = _name_and_arguments(call if function is None else function, where)
    return ToolCall(name=name, arguments=arguments, id=optional_text(call.get("id"), f"{where}.id"))


def _name_and_arguments(function: object, where: str) -> tuple[str, str]:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise UnusableRow(f"`{where}` is a tool call without a name")
    at = f"{where}.arguments"
    value = function.get("arguments")
    arguments = parse_json(value, at) if isinstance(value, str) else value
    if not isinstance(arguments, dict):
        raise UnusableRow(f"`{at}` holds {kind_of(arguments)} where an object is needed")
    return whole_text(name, where), compact_json(arguments, at)


def optional_text(value: object, where: str) -> str | None:
    """Return text, or None for null.

    Raises:
        UnusableRow: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise UnusableRow(f"`{where}` holds {kind_of(value)} where text is needed")
    return whole_text(value, where)


def read_tools(value: object, column: str) -> str | None:
    """Write the tools of a row as compact JSON, each as `{"type": "function", "function": {"name", ...}}`.

    That is how a server hands them to the chat template, so a template that was trained on a bare `{"name", ...}`
    would be asked with something else. None stands for no tools: null, blank text, an empty list.

    Raises:
        UnusableRow: it is no list of tools, or no JSON text of one.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _cached_tools(value, column) if len(value) <= CACHED_CHARACTERS else _tools_of_text(value, column)
    return _tools(value, column)


def _tools_of_text(text: str, column: str) -> str | None:
    return None if is_blank(text) else _tools(parse_json(text, column), column)


_cached_tools = lru_cache(maxsize=256)(_tools_of_text)


def _tools(tools: object, column: str) -> str | None:
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise UnusableRow(f"`{column}` holds {kind_of(tools)} where a list of tools is needed")
    written = [_tool(tool, f"{column}[{index}]") for index, tool in enumerate(tools)]
    return compact_json(written, column) if written else None


def _tool(tool: object, where: str) -> dict[str, object]:
    if not isinstance(tool, dict):
        raise UnusableRow(f"`{where}` holds {kind_of(tool)} where a tool is needed")
    bare = tool.get("function") is None
    function = {key: value for key, value in tool.items() if key not in _OUTER} if bare else tool["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableRow(f"`{where}` is a tool without a name")
    first = {key: function[key] for key in ("name", "description", "parameters") if key in function}
    others = {} if bare else {key: value for key, value in tool.items() if key not in _OUTER}
    return {"type": tool.get("type") or "function", "function": first | function, **others}
