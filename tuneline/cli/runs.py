"""Commands about runs: plan one, start one, look at one."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tuneline.cli.common import config_argument, console, json_option, print_json
from tuneline.cli.tables import print_plan, print_run
from tuneline.contracts.errors import StageFailed
from tuneline.contracts.run_record import load_run
from tuneline.contracts.settings import Settings
from tuneline.contracts.spec_loading import load_spec

QUICKSTART = "configs/quickstart.yaml"


@click.command()
@config_argument
@json_option
def run(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Run the pipeline: prepare, plan, train, merge, evaluate, decide, register, package, verify, release."""
    _run(config, overrides, as_json)


@click.command()
@json_option
def quickstart(as_json: bool) -> None:
    """Run the embedded example, from its data to a served model."""
    _run(QUICKSTART, (), as_json)


def _run(config: str, overrides: Sequence[str], as_json: bool) -> None:
    spec = load_spec(Path(config), overrides)  # a mistake is answered at once, before seconds of imports
    from flows.local import run_locally

    try:
        record = run_locally(config, overrides)
    except StageFailed:
        print_run(load_run(Settings.from_environment().store_root, spec.name), console(stderr=True))
        raise
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_run(record, console())
    sys.exit(record.exit_code)


@click.command()
@click.argument("run")
@json_option
def show(run: str, as_json: bool) -> None:
    """Show a run by its id, or the newest one of a name."""
    record = load_run(Settings.from_environment().store_root, run)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        print_run(record, console())


@click.command()
@config_argument
@json_option
def plan(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Estimate memory, time and money, and show every derived setting with its reason."""
    from tuneline.data.estimate import estimate_prepared
    from tuneline.planning.hardware import this_machine
    from tuneline.planning.run import run as plan_training

    spec = load_spec(Path(config), overrides)
    prepared = estimate_prepared(spec)
    base = Path(spec.model.base)
    made = plan_training(spec, base if base.is_dir() else None, prepared, this_machine())
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        print_plan(made, console())


COMMANDS = (run, quickstart, plan, show)
