"""The plan stage."""

from pathlib import Path

from tuneline.contracts.artifacts import Plan, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.spec import RunSpec
from tuneline.planning.hardware import Machine
from tuneline.planning.known_models import shape_of_known
from tuneline.planning.model_shape import shape_of_folder
from tuneline.planning.plan import make_plan
from tuneline.planning.request import adapter_problems


def run(spec: RunSpec, base_dir: Path | None, prepared: PreparedData, machine: Machine) -> Plan:
    """Plan a run from files alone: no weights are read, and nothing heavy is imported.

    Args:
        spec: the config.
        base_dir: folder of the base model; when None the model's shape comes from the table that tuneline ships.
        prepared: record of the prepared data.
        machine: facts of this machine, from `hardware.this_machine`.

    Raises:
        UserError: an unknown model, or every reason not to start the run.
    """
    shape = shape_of_known(spec.model.base) if base_dir is None else shape_of_folder(base_dir)
    return make_plan(spec, shape, prepared, machine)


def check_adapter(spec: RunSpec, base_dir: Path) -> None:
    """Hold a config's adapter against the base model's files, before any data is looked at.

    Raises:
        UserError: weights that cannot be trained, or targets that they do not have.
    """
    if problems := adapter_problems(spec.adapter, shape_of_folder(base_dir)):
        raise UserError(problems)
