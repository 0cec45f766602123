"""The command of the machines that only train along."""

import sys

import click

from tuneline.contracts.errors import UserError
from tuneline.contracts.settings import rendezvous_of


@click.command()
def node() -> None:
    """Take part in the training that the node at TUNELINE_RENDEZVOUS leads, and exit with its code.

    For every machine of a run but the first, on which `tuneline run` or a Prefect worker runs the flow. All of them
    see TUNELINE_HOME, and the base model, under the same paths.
    """
    rendezvous = rendezvous_of()
    if rendezvous is None:
        fix = "set it to HOST:PORT of the machine that runs the flow"
        raise UserError.of("this node does not know where to go", "TUNELINE_RENDEZVOUS", fix)
    from flows.nodes import take_part

    sys.exit(take_part(rendezvous))


COMMANDS = (node,)
