"""The differences between two receipts in a terminal."""

from collections.abc import Sequence
from difflib import unified_diff
from itertools import groupby

from rich.console import Console
from rich.text import Text

from evaluation.report_checks import per_cent
from evaluation.report_lens import visible
from tuneline.cli.receipt_diff import Difference, Value
from tuneline.cli.receipt_style import first_ids, indented, print_section, safe, start_table

LONGEST_CELL = 16
"""Characters of a text that stand in a table; of longer ones, such as hashes, both ends do."""
DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def print_differences(differences: Sequence[Difference], out: Console) -> None:
    """Print a table for each section, a unified diff for each longer text, and which row ids came and went."""
    if not differences:
        out.print("The receipts are equal.")
    for section, group in groupby(differences, key=lambda one: one.section):
        found = tuple(group)
        facts = [one for one in found if not _is_text(one) and not _is_ids(one)]
        print_section(section, out)
        if facts:
            _print_facts(facts, out)
        for one in filter(_is_ids, found):
            _print_ids(one, out)
        for one in filter(_is_text, found):
            _print_text(one, out)


def _is_text(one: Difference) -> bool:
    return any(isinstance(value, str) and "\n" in value for value in (one.a, one.b))


def _is_ids(one: Difference) -> bool:
    return isinstance(one.a, tuple) or isinstance(one.b, tuple)


def _print_facts(facts: Sequence[Difference], out: Console) -> None:
    table = start_table("", "A>", "B>", "change>")
    for one in facts:
        a, b = _written(one.a), _written(one.b)
        if _shortened(a) != _shortened(b):
            a, b = _shortened(a), _shortened(b)
        table.add_row(safe(one.name), safe(a), safe(b), change(one))
    out.print(table)


def change(one: Difference) -> str:
    """Write how much a figure changed: a count in per cent of A, a share in points; empty for a text."""
    if one.a is None or one.b is None:
        return "only in A" if one.b is None else "only in B"
    if isinstance(one.a, bool | str | tuple) or isinstance(one.b, bool | str | tuple):
        return ""
    if isinstance(one.a, float) or isinstance(one.b, float):
        return f"{100 * (one.b - one.a):+.2f} points"
    step = one.b - one.a
    return f"{step:+,} ({100 * step / one.a:+.1f} %)" if one.a else f"{step:+,}"


def _written(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return per_cent(value, 2)
    return str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[:8]}...{text[-4:]}"


def _print_ids(one: Difference, out: Console) -> None:
    a, b = (value if isinstance(value, tuple) else () for value in (one.a, one.b))
    out.print(indented(visible(one.name)))
    for side, mine, others in (("A", a, b), ("B", b, a)):
        only = tuple(row_id for row_id in mine if row_id not in others)
        if only:
            out.print(indented(f"only in {side}: {first_ids(only, len(only))}", 4, "dim"))
    if set(a) == set(b):
        out.print(indented("the same rows in another order", 4, "dim"))


def _print_text(one: Difference, out: Console) -> None:
    lines = unified_diff(_lines(one.a), _lines(one.b), f"A {one.name}", f"B {one.name}", lineterm="")
    out.print(indented(visible(one.name)))
    for line in lines:
        out.print(indented(Text(visible(line), DIFF_STYLES.get(line[:1], "dim")), 4), soft_wrap=True)


def _lines(value: Value) -> list[str]:
    return str(value).split("\n") if value is not None else []
