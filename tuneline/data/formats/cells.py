"""Values of a row as text or JSON, and how reasons name them."""

import difflib
import json
import math
from collections.abc import Iterable
from itertools import islice

from tuneline.data.rows import UnusableRow

SHOWN_CHARACTERS = 60
"""A value is cut after these in a reason: a cell may hold 10 MB."""
SHOWN_COLUMNS = 40
"""Columns that a reason lists; the rest are counted."""
COMPARED_COLUMNS = 400
"""Columns that are looked through for a mistyped name, in 2 ms: a file of bad rows has a search for each of them."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def text_cell(value: object, column: str) -> str:
    """Return a cell's text; numbers and true/false as JSON writes them.

    Raises:
        UnusableRow: the cell is null, a list, an object, or text that is not Unicode.
    """
    if isinstance(value, str):
        return whole_text(value, column)
    if value is None:
        raise UnusableRow(f"`{column}` is null")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, int | float) or (isinstance(value, float) and math.isnan(value)):
        raise UnusableRow(f"`{column}` holds {kind_of(value)} where text is needed")
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        raise UnusableRow(f"`{column}` holds a number too long to write") from None


def whole_text(text: str, where: str) -> str:
    r"""Return the text as it is, if it can be written as UTF-8.

    Raises:
        UnusableRow: it holds half of a surrogate pair (JSON's "\ud83d" alone), which no tokenizer reads.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise UnusableRow(f"`{where}` holds half of a surrogate pair, {half}") from None
    return text


def is_blank(text: str) -> bool:
    """Say whether there is nothing but white space."""
    return not text or text.isspace()


def parse_json(text: str, where: str) -> object:
    """Read JSON text.

    Raises:
        UnusableRow: it is none, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UnusableRow(f"`{where}` is nested too deep") from None
    except ValueError as error:
        raise UnusableRow(f"`{where}` is no JSON: {error}") from None


def compact_json(value: object, where: str) -> str:
    """Write a value as JSON without spaces, keys in their own order: a chat template prints them in it.

    Raises:
        UnusableRow: it holds what JSON cannot (NaN, bytes, a date), or is nested too deep.
    """
    try:
        text = _ENCODER.encode(value)
    except RecursionError:
        raise UnusableRow(f"`{where}` is nested too deep") from None
    except (TypeError, ValueError) as error:
        raise UnusableRow(f"`{where}` cannot be written as JSON: {shown(str(error))}") from None
    return whole_text(text, where)


def shown(text: str) -> str:
    """Cut text that a reason quotes."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def kind_of(value: object) -> str:
    """Name a value's type for people."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a value of type {type(value).__name__}")


def nearest(name: str, names: Iterable[str], similarity: float = 0.6) -> str | None:
    """Find the name most like a mistyped one (0.6 is difflib's own measure of a good match)."""
    if len(name) > SHOWN_CHARACTERS:  # no name; and difflib would take seconds for a cell of 10 MB
        return None
    close = difflib.get_close_matches(
        name, [str(other) for other in islice(names, COMPARED_COLUMNS)], n=1, cutoff=similarity
    )
    return close[0] if close else None


def listed(names: Iterable[str]) -> str:
    """List names, the first `SHOWN_COLUMNS` of them."""
    every = list(names)
    more = [f"and {len(every) - SHOWN_COLUMNS:,} more"] if len(every) > SHOWN_COLUMNS else []
    return ", ".join([shown(str(name)) for name in every[:SHOWN_COLUMNS]] + more) or "none"
