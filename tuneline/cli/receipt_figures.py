"""A receipt's figures in a terminal: checks, roles, leaks, lengths, packing and the template."""

from rich.console import Console
from rich.text import Text

from evaluation.report_checks import check_lines, per_cent, role_lines
from evaluation.report_lens import visible
from evaluation.report_receipt import (
    leak_fate,
    leak_figures,
    limit_lines,
    packing_shares,
)
from tuneline.cli.receipt_style import (
    BAR_COLUMNS,
    bar,
    gauge,
    indented,
    mark_text,
    print_reason,
    print_section,
    safe,
    start_table,
    words,
)
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.receipt import Receipt


def print_figures(receipt: Receipt, spec: DataSpec, out: Console) -> None:
    """Print everything that is measured, held against the limits of the config."""
    _print_checks(receipt, spec, out)
    _print_roles(receipt, out)
    _print_leaks(receipt, spec, out)
    _print_lengths(receipt, out)
    _print_limits(receipt, spec, out)
    _print_packing(receipt, out)
    _print_template(receipt, out)


def _print_checks(receipt: Receipt, spec: DataSpec, out: Console) -> None:
    table = start_table("", "", "figure>", "limit")
    for check in check_lines(receipt, spec.limits):
        table.add_row(mark_text(check.mark), check.name, check.figure, Text(check.limit, "dim"))
    print_section("Checks", out, table)


def _print_roles(receipt: Receipt, out: Console) -> None:
    table = start_table("role", "tokens>", "learned>", "share>", "")
    for line in role_lines(receipt.tokens):
        drawn = gauge(line.learned_share, "green")
        table.add_row(safe(line.role), f"{line.tokens:,}", f"{line.learned:,}", per_cent(line.learned_share, 1), drawn)
    print_section("Learned, by role", out, table)


def _print_leaks(receipt: Receipt, spec: DataSpec, out: Console) -> None:
    if not receipt.leaks:
        return
    table = start_table("", "data set", "same prompt>", "13 words>", "similar>", "items touched>")
    figures = leak_figures(receipt)
    for figure in figures:
        touched = f"{figure.line.items_touched:,} of {figure.line.items:,} ({per_cent(figure.touched_share, 1)})"
        counts = (f"{kind.rows:,}" for kind in figure.kinds)
        table.add_row(mark_text(figure.mark), words(figure.line.data_set), *counts, touched)
    print_section("Training rows that evaluation knows too", out, table)
    if fate := leak_fate(receipt.leaks, spec):
        out.print(indented(fate))
    for figure in figures:
        name = words(figure.line.data_set)
        if figure.note:
            out.print(indented(f"In {name}, {figure.note}"))
        for kind in figure.kinds:
            if kind.rows:
                print_reason(Text(f"{name}: {kind.rows:,} rows, {visible(kind.reason)}"), kind, out)


def _print_lengths(receipt: Receipt, out: Console) -> None:
    histogram = start_table("tokens>", "rows>", "")
    most = max((one.rows for one in receipt.length_histogram), default=0) or 1
    for one in receipt.length_histogram:
        drawn = Text(bar(one.rows / most, 2 * BAR_COLUMNS), "cyan")
        histogram.add_row(f"{one.from_tokens:,} to {one.to_tokens:,}", f"{one.rows:,}", drawn)
    marked = "   ".join(f"{name} {value:,}" for name, value in receipt.lengths)
    print_section("Lengths, in tokens", out, indented(marked), histogram)


def _print_limits(receipt: Receipt, spec: DataSpec, out: Console) -> None:
    costs = start_table("limit>", "rows over>", "learned lost, dropped>", "cut on the right>", "")
    for line in limit_lines(receipt, spec):
        limit = line.limit
        lost = (limit.learned_share_lost_by_drop, limit.learned_share_lost_by_truncate_right)
        costs.add_row(
            f"{limit.limit_tokens:,}",
            f"{limit.rows_over:,}",
            *(per_cent(share, 2) for share in lost),
            Text("in use", "bold") if line.in_use else "",
        )
    print_section("What a limit on the length would cost", out, costs)


def _print_packing(receipt: Receipt, out: Console) -> None:
    packing = receipt.packing
    table = start_table("", "share>", "")
    for line in packing_shares(packing):
        table.add_row(line.name, per_cent(line.share, 1), gauge(line.share, "cyan"))
    packs = f"{packing.packs:,} packs of at most {packing.capacity_tokens:,} tokens"
    print_section(f"Packing: {packs}, of whose room hold a token", out, table)


def _print_template(receipt: Receipt, out: Console) -> None:
    template = receipt.template
    stable = "prefix-stable" if template.prefix_stable else "not prefix-stable: it rewrites earlier turns"
    print_section("Chat template", out, indented(f"sha256 {template.sha256}\n{stable}"))
