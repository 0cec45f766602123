"""The ranks of one node: torch's elastic agent starts them, watches them, and ends them together."""

import os
import signal
import socket
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Self

import psutil

from tuneline.contracts.artifacts import Record
from tuneline.contracts.settings import Endpoint

JOIN_SECONDS = 900
"""How long the nodes that are there wait for one that is not, before the attempt counts as failed."""


class World(Record):
    """What every node must know of a training."""

    job_dir: str
    """On a file system that all nodes see under the same path."""
    nodes: int
    processes_per_node: int


@dataclass(frozen=True)
class Place:
    """Where a node finds the others, and where they find it."""

    rendezvous: Endpoint
    address: str


class Stopped(Exception):
    """SIGTERM while no rank was there that could have saved anything."""


class StopRequest:
    """SIGTERM to a node: handed to its ranks, which end at their next step.

    A context manager, entered in the main thread. torchrun's own handler would leave at once, and with it the barrier
    at which the other nodes wait.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        """Take SIGTERM over."""
        self._former = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGTERM back."""
        signal.signal(signal.SIGTERM, self._former)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        living = ranks()
        if not living:
            raise Stopped
        for rank in living:
            rank.send_signal(signal.SIGTERM)


def ranks() -> list[psutil.Process]:
    """List the living ranks of this node: this process starts nothing else."""
    return psutil.Process().children()


def run_ranks(world: World, place: Place, attempt: int) -> bool:
    """Meet the other nodes and train until this node's ranks have ended.

    Args:
        world: the training.
        place: this node's.
        attempt: nodes meet only with those of the same attempt.

    Returns:
        Whether every rank ended well.

    Raises:
        Stopped: SIGTERM before the nodes met.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    config = LaunchConfig(
        min_nodes=world.nodes,
        max_nodes=world.nodes,
        nproc_per_node=world.processes_per_node,
        run_id=f"attempt-{attempt}",
        rdzv_backend="c10d",
        rdzv_endpoint=str(place.rendezvous),
        rdzv_configs={"is_host": False, "join_timeout": JOIN_SECONDS},
        max_restarts=0,  # whether another attempt helps, the first node decides for all
        local_addr=place.address,
        signals_to_handle="SIGQUIT",  # not SIGTERM, which `StopRequest` handles; it wants at least one
    )
    safe_path = ["-P"] if sys.flags.safe_path else []
    try:
        launch_agent(config, sys.executable, [*safe_path, "-u", "-m", "training", world.job_dir])
    except (ChildFailedError, RendezvousError) as error:
        print(f"attempt {attempt}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def own_address(rendezvous: Endpoint) -> str:
    """Return the address from which this machine reaches the rendezvous; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rendezvous.host, rendezvous.port))
        return str(probe.getsockname()[0])


def use_interface_of(address: str) -> None:
    """Have gloo use the interface that has an address.

    Left alone, it takes the one that this machine's name resolves to, and the loopback when there is none: there no
    other node finds it. NCCL looks for itself and is left alone.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses) and not address.startswith("127."):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def share_threads(processes: int) -> None:
    """Divide the threads that this process was granted among the ranks of this node."""
    granted = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(max(1, granted // processes))
