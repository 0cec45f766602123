"""The prompt template: a user message made of a row's columns."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tuneline.data.formats.cells import is_blank, listed, nearest, shown, text_cell
from tuneline.data.rows import UnusableRow

PLAIN: Final = "{prompt}"
_PIECE = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}")
_LIKE_JSON = re.compile(r"^\s*$|[\"':,\[\]\n]")


@dataclass(frozen=True, slots=True)
class Hole:
    """A place for a column's text; one whose name looks like JSON is a place only where the row has that column."""

    column: str
    like_json: bool


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A parsed template; `columns` are those that every row must have, without `prompt`."""

    pieces: tuple[str | Hole, ...]
    is_plain: bool
    needs_prompt: bool
    columns: tuple[str, ...]


@lru_cache(maxsize=64)
def parse_template(text: str) -> PromptTemplate:
    """Parse `{column}` and the escapes `{{` and `}}`; any other brace stands for itself."""
    pieces: list[str | Hole] = []
    end = 0
    for match in _PIECE.finditer(text):
        escape, name = match.groups()
        pieces.append(text[end : match.start()])
        pieces.append(escape[0] if escape else Hole(name, bool(_LIKE_JSON.search(name))))
        end = match.end()
    pieces.append(text[end:])
    names = [piece.column for piece in pieces if isinstance(piece, Hole) and not piece.like_json]
    others = tuple(dict.fromkeys(name for name in names if name != "prompt"))
    return PromptTemplate(tuple(piece for piece in pieces if piece != ""), text == PLAIN, "prompt" in names, others)


def fill(template: PromptTemplate, values: Mapping[str, object], prompt: str | None, may_be_blank: bool) -> str:
    """Write the user message of a row; `prompt` is the column that `{prompt}` stands for.

    Raises:
        UnusableRow: a column is absent, null or no text; or all are blank and the row has no other content.
    """
    if template.is_plain and prompt is not None:
        text = text_cell(values.get(prompt), prompt)
        if not may_be_blank and is_blank(text):
            raise UnusableRow(f"the prompt `{prompt}` is empty")
        return text
    written: list[str] = []
    cells: list[str] = []
    for piece in template.pieces:
        if isinstance(piece, str):
            written.append(piece)
        elif piece.like_json and piece.column not in values:
            written.append("{" + piece.column + "}")
        else:
            cells.append(_cell(piece.column, values, prompt))
            written.append(cells[-1])
    if not may_be_blank and all(is_blank(cell) for cell in cells):
        raise UnusableRow("every column that prompt_template names is empty")
    return "".join(written)


def _cell(name: str, values: Mapping[str, object], prompt: str | None) -> str:
    column = prompt if name == "prompt" and prompt is not None else name
    if column not in values:
        near = nearest(column, values)
        hint = f"; the nearest is `{near}`" if near else ""
        raise UnusableRow(
            f"no column `{shown(column)}`, which prompt_template names{hint}; the columns are {listed(values)}"
        )
    return text_cell(values[column], column)
