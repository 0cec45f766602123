"""How a receipt's tables, bars and marks look in a terminal."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evaluation.report_checks import Mark
from evaluation.report_lens import visible
from tuneline.contracts.receipt import Reason

SHOWN_ROW_IDS: Final = 5
"""Row ids printed for each reason; the receipt has up to 20, `dropped.jsonl` all."""
LONGEST_INLINE: Final = 36
"""Characters of a row id that stands beside others; ids with notes are longer."""
BAR_COLUMNS: Final = 24
MARKS: Final[dict[Mark, tuple[str, str]]] = {
    "good": ("\u2713 good", "green"),
    "open": ("! look", "yellow"),
    "bad": ("\u2717 bad", "bold red"),
    "none": ("", ""),
}


def bar(share: float, columns: int = BAR_COLUMNS) -> str:
    """Draw a share as a bar of eighths of a column; any share above nothing shows."""
    eighths = max(round(share * columns * 8), 1 if share > 0 else 0)
    full, rest = divmod(min(eighths, columns * 8), 8)
    return "\u2588" * full + (chr(0x2590 - rest) if rest else "")


def gauge(share: float, style: str) -> Text:
    """Draw a share as a bar on the whole that it is a share of."""
    drawn = bar(share)
    return Text.assemble((drawn, style), ("\u2591" * (BAR_COLUMNS - len(drawn)), "dim"))


def mark_text(mark: Mark) -> Text:
    """Write a mark in words and colour."""
    return Text(*MARKS[mark])


def start_table(*columns: str) -> Table:
    """Start a table without lines; a column named `name>` is flush right."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        right = name.endswith(">")
        table.add_column(name.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def print_section(title: str, out: Console, *parts: RenderableType) -> None:
    """Print a heading and what stands under it."""
    out.print()
    out.print(Text(title, "bold"))
    for part in parts:
        out.print(part)


def indented(text: str | Text, columns: int = 2, style: str = "") -> Padding:
    """Move a text to the right, its folded lines too."""
    return Padding(Text(text, style) if isinstance(text, str) else text, (0, 0, 0, columns), expand=False)


def words(name: str) -> str:
    """Write a name of the record as words."""
    return visible(name).replace("_", " ")


def safe(text: str) -> Text:
    """Keep a text of unknown origin from being read as markup or as control codes."""
    return Text(visible(text))


def print_reason(head: Text, reason: Reason, out: Console) -> None:
    """Print a line, and under it the first rows of a reason."""
    out.print(indented(head))
    out.print(indented(first_ids(reason.examples, reason.rows), 6, "dim"))


def first_ids(row_ids: Sequence[str], rows: int) -> str:
    """Name the first of the rows, on lines of their own where they are long, and say how many more there are."""
    shown = [visible(row_id) for row_id in row_ids[:SHOWN_ROW_IDS]]
    more = [f"and {rows - len(shown):,} more"] if rows > len(shown) else []
    longest = max(map(len, shown), default=0)
    return ("\n" if longest > LONGEST_INLINE else "; ").join([*shown, *more])
