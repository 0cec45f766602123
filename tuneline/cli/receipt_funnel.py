"""Where a receipt's rows came from and went, in a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from evaluation.report_lens import visible
from evaluation.report_receipt import Funnel, FunnelStep, funnels
from tuneline.cli.receipt_style import bar, print_reason, print_section, safe, start_table, words
from tuneline.contracts.receipt import Reason, Receipt, SourceLine

WIDE_COLUMNS = 110
"""From this width on, the funnel has bars too."""


def print_rows(receipt: Receipt, out: Console) -> None:
    """Print the sources, the funnel over data sets and steps, and the first rows of each reason."""
    _print_sources(receipt.sources, out)
    ways = funnels(receipt.steps)
    _print_funnels(ways, out)
    _print_reasons("Rows left out, the first of each reason", "-", _reasons(ways, "dropped"), out)
    _print_reasons("Rows kept, but worth knowing", "", _reasons(ways, "noted"), out)


def _print_sources(sources: Sequence[SourceLine], out: Console) -> None:
    table = start_table("data set", "source", "files>", "rows>", "format")
    for source in sources:
        formats = "\n".join(f"{name} {rows:,}" for name, rows in source.formats.items())
        table.add_row(
            words(source.data_set), safe(source.path), f"{source.files:,}", f"{source.rows_read:,}", Text(formats)
        )
    print_section("Sources", out, table)


def _print_funnels(ways: Sequence[Funnel], out: Console) -> None:
    wide = out.width >= WIDE_COLUMNS
    table = start_table("data set", "step", *(("",) if wide else ()), "rows>", "tokens>", "what happened")
    for way in ways:
        for place, step in enumerate(way.steps):
            line = step.line
            table.add_row(
                words(line.data_set) if place == 0 else "",
                safe(line.step),
                *((Text(bar(step.out_share), "cyan"),) if wide else ()),
                f"{line.rows_out:,}",
                f"{'~' if line.tokens_estimated else ''}{line.tokens_out:,}",
                Text("\n").join(_fates(step)),
            )
    print_section("Where every row went (~ estimated)", out, table)


def _fates(step: FunnelStep) -> Iterator[Text]:
    for reason in step.line.dropped:
        yield Text(f"-{reason.rows:,} {visible(reason.reason)}")
    if step.added_rows:
        yield Text(f"+{step.added_rows:,} made in this step")
    if step.lost_rows:
        yield Text(f"-{step.lost_rows:,} without a reason", "bold red")


def _reasons(ways: Sequence[Funnel], kind: str) -> Iterator[tuple[str, Reason]]:
    for way in ways:
        for step in way.steps:
            for reason in step.line.dropped if kind == "dropped" else step.line.noted:
                yield f"{words(way.data_set)}, {visible(step.line.step)}", reason


def _print_reasons(title: str, sign: str, reasons: Iterator[tuple[str, Reason]], out: Console) -> None:
    shown = list(reasons)
    if not shown:
        return
    print_section(title, out)
    for where, reason in shown:
        head = Text.assemble(f"{where}: ", (f"{sign}{reason.rows:,} {visible(reason.reason)}", "bold"))
        print_reason(head, reason, out)
