"""A receipt as a person reads it in a terminal, at 80 columns or more."""

from rich.console import Console
from rich.text import Text

from evaluation.report_checks import per_cent
from evaluation.report_lens import visible
from tuneline.cli.receipt_figures import print_figures
from tuneline.cli.receipt_funnel import print_rows
from tuneline.cli.receipt_lens import has_colours, legend, lens_text
from tuneline.cli.receipt_style import indented, print_section, words
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.receipt import SHOWN_SAMPLES, Receipt


def print_receipt(receipt: Receipt, spec: DataSpec, out: Console, samples: int = SHOWN_SAMPLES) -> None:
    """Print a receipt, its checks held against the config that it was made under.

    Args:
        receipt: the account of a prepare stage.
        spec: the data section of its config.
        out: where to print.
        samples: how many of the receipt's samples to show.
    """
    _print_head(receipt, out)
    print_rows(receipt, out)
    print_figures(receipt, spec, out)
    _print_samples(receipt, samples, out)


def _print_head(receipt: Receipt, out: Console) -> None:
    rows, tokens = receipt.rows, receipt.tokens
    title = f"{words(receipt.kind)} data: {rows.train:,} training rows"
    out.print(Text.assemble((title, "bold"), f", {rows.held_out:,} held out, {rows.retention:,} for retention"))
    share = per_cent(receipt.checks.learned_share, 1)
    out.print(Text(f"{tokens.train:,} training tokens, {tokens.learned:,} learned ({share}); seed {receipt.seed}"))


def _print_samples(receipt: Receipt, samples: int, out: Console) -> None:
    shown = receipt.samples[:samples]
    if not shown:
        return
    coloured = has_colours(out)
    print_section("What the model learns", out, indented(legend(coloured)))
    for number, sample in enumerate(shown, 1):
        title = f"sample {number} of {len(receipt.samples)}: {visible(sample.row_id)}"
        out.print()
        out.rule(Text(title), align="left", style="dim")
        text = lens_text(sample, coloured)
        out.print(text, soft_wrap=True, end="" if text.plain.endswith("\n") else "\n")
