"""`tuneline`: one YAML file becomes a served model.

Commands import what they need when they run: `tuneline --help` takes a fraction of a second, and only a command that
runs the flow pays for Prefect.
"""

import errno
import sys
from typing import Any

import click

from tuneline.cli import configs, data, models, nodes, runs
from tuneline.contracts.errors import ExitCode, TunelineError
from tuneline.contracts.jobs import disk_full
from tuneline.contracts.settings import Settings


class TunelineGroup(click.Group):
    """Prints the errors that are a user's to mend without a traceback, and exits with their code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except TunelineError as error:
            print_error(str(error))
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print_error(str(disk_full(Settings.from_environment().home)))
            sys.exit(ExitCode.WRONG_INPUT)


def print_error(message: str) -> None:
    """Print an error where errors belong."""
    click.echo(f"{click.style('error', fg='red', bold=True)}: {message}", err=True)


@click.group(cls=TunelineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tuneline")
def main() -> None:
    """One YAML file becomes a fine-tuned, evaluated, registered and served model.

    Exit codes: 0 done, 1 failed, 2 wrong input, 3 the gate says REJECT, 4 INCONCLUSIVE, 5 pre-empted.
    """


for command in (*configs.COMMANDS, *data.COMMANDS, *runs.COMMANDS, *models.COMMANDS, *nodes.COMMANDS):
    main.add_command(command)
