"""Commands about models that are registered: take one back, question its image, serve it, and look at this machine."""

import getpass
import sys

import click

from tuneline.cli.common import console, json_option, print_json
from tuneline.cli.tables import print_checks, print_run
from tuneline.contracts.run_record import load_run
from tuneline.contracts.settings import Settings


@click.command()
@click.argument("model")
@click.option("--why", default="asked for on the command line", show_default=True, help="Reason, kept in the journal.")
@json_option
def rollback(model: str, why: str, as_json: bool) -> None:
    """Make the previous champion of MODEL the champion again, and name the image to deploy."""
    from tuneline.registry.aliases import rollback as roll_back
    from tuneline.registry.connection import connect

    released = roll_back(connect(Settings.from_environment()), model, getpass.getuser(), why)
    if as_json:
        print_json(released.model_dump(mode="json"))
    else:
        click.echo(released.reason)


@click.group()
def image() -> None:
    """Serving images."""


@image.command()
@click.argument("reference")
def base(reference: str) -> None:
    """Note the layers of the base image REFERENCE, once, so that packaging on it takes seconds."""
    from tuneline.serving.base_image import read_base_image

    facts = read_base_image(reference, Settings.from_environment().base_image_cache)
    click.echo(f"{reference}: {len(facts.layers)} layers, {facts.image_id}")


@image.command()
@click.argument("run")
def verify(run: str) -> None:
    """Make, start and question the image of RUN where there is a container engine, and release it if it passes.

    The same run again: every artifact that the store has is found, only what is missing is made.
    """
    from flows.local import run_locally
    from tuneline.serving.engine import require_engine

    require_engine()
    record = load_run(Settings.from_environment().store_root, run)
    again = run_locally(record.config, record.overrides)
    print_run(again, console())
    sys.exit(again.exit_code)


@click.command()
@click.argument("run")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of 127.0.0.1.")
def serve(run: str, port: int) -> None:
    """Serve the image of RUN on this machine until Ctrl-C."""
    from tuneline.serving.serve import serve_image

    record = load_run(Settings.from_environment().store_root, run)
    serve_image(record, port)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine has and lacks."""
    from tuneline.cli.machine import examine

    checks = examine(Settings.from_environment())
    if as_json:
        print_json([check.model_dump(mode="json") for check in checks])
    else:
        print_checks(checks, console())


COMMANDS = (rollback, image, serve, doctor)
