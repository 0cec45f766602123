"""Commands about data: look at what a config prepares, and at how two preparations differ."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from pydantic import ValidationError

from tuneline.cli.common import config_argument, console, json_option, print_json
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.receipt import SHOWN_SAMPLES, Receipt
from tuneline.contracts.spec_loading import load_spec

CONFIG_SUFFIXES = (".yaml", ".yml")


@click.group()
def data() -> None:
    """What becomes of the data: every row and token, and what the model is taught."""


@data.command()
@config_argument
@click.option(
    "--samples",
    type=click.IntRange(0, SHOWN_SAMPLES),
    default=SHOWN_SAMPLES,
    show_default=True,
    help="Training rows to show with their masks.",
)
@json_option
def inspect(config: str, overrides: Sequence[str], samples: int, as_json: bool) -> None:
    """Show where every row and token of CONFIG's data went.

    The data is prepared first, or found prepared. Its receipt says what was left out and why, how the masks check, how
    long the rows are, whether evaluation knows any of them, and, for a few rows, exactly what the model is taught.
    """
    spec = load_spec(Path(config), overrides)  # a mistake is answered at once, before seconds of imports
    from flows.preparation import prepare_only
    from tuneline.cli.receipts import print_receipt

    prepared = prepare_only(config, overrides)
    if as_json:
        print_json(prepared.receipt.model_dump(mode="json"))
        return
    out = console()
    print_receipt(prepared.receipt, spec.data, out, samples)
    made = "found, made by an earlier run" if prepared.found else f"made in {prepared.seconds:.1f} s"
    out.print(f"\nreceipt  {prepared.folder / PreparedData.RECEIPT} ({made})", soft_wrap=True, markup=False)
    dropped = prepared.folder / PreparedData.DROPPED
    out.print(f"dropped  {dropped} (every row left out, with its reason)", soft_wrap=True, markup=False)


@data.command()
@click.argument("a")
@click.argument("b")
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Show what differs between the receipts A and B.

    Each is a receipt.json, a folder that holds one, or a config, whose data is then prepared or found prepared.
    """
    from tuneline.cli.receipt_diff import compare_receipts
    from tuneline.cli.receipt_diff_tables import print_differences

    differences = compare_receipts(read_receipt(a), read_receipt(b))
    if as_json:
        print_json([asdict(difference) for difference in differences])
        return
    out = console()
    out.print(f"A  {a}\nB  {b}", soft_wrap=True, markup=False)
    print_differences(differences, out)


def read_receipt(place: str) -> Receipt:
    """Read the receipt that a file, a folder or a config stands for.

    Raises:
        UserError: there is no receipt, or the file is none of this version.
    """
    path = Path(place)
    if path.suffix in CONFIG_SUFFIXES:
        load_spec(path)
        from flows.preparation import prepare_only

        return prepare_only(place, ()).receipt
    file = path / PreparedData.RECEIPT if path.is_dir() else path
    if not file.is_file():
        fix = "give a receipt.json, a folder that holds one, or a config (.yaml)"
        raise UserError.of("there is no receipt", str(file), fix)
    try:
        return Receipt.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"this is no receipt of this version: {where + ': ' if where else ''}{first['msg']}"
        raise UserError.of(what, str(file), "prepare the data again: tuneline data inspect CONFIG") from None


COMMANDS = (data,)
