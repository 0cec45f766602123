"""What the commands share: arguments, and the two ways of printing facts."""

import json
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console


def config_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add CONFIG and --set to a command."""
    option = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Change a value of the file; may be repeated.",
    )
    return click.argument("config")(option(command))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def console(*, stderr: bool = False) -> Console:
    """Return the console for facts."""
    return Console(highlight=False, stderr=stderr)


def print_json(value: object) -> None:
    """Print a value of plain types as JSON."""
    click.echo(json.dumps(value, indent=1))
