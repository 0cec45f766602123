"""The kill table with Prefect: a server, a process worker, and a flow whose stage does not end by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prefect_stack import PrefectStack
from processes import PROGRAMS, TAG, describe, eventually, find, kill_all, program_environment

GRACE_SECONDS = 1.0
LIMIT_SECONDS = GRACE_SECONDS + 5.0
STATE_SECONDS = 30.0
"""Prefect's own path to a final state, on a busy machine: websocket, signal, hooks, API."""
START_SECONDS = 90.0
POOL = "supervised"


@dataclass(frozen=True)
class Stack:
    """The Prefect stack with one deployment, and the environment that tags all its processes."""

    prefect: PrefectStack
    deployment_id: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = program_environment()
    with PrefectStack(tmp_path_factory.mktemp("prefect"), environment) as prefect:
        prefect.start_worker(POOL)
        deployment_id = prefect.deploy(POOL, "tiny", "tiny_flow.py:tiny", PROGRAMS)
        yield Stack(prefect, deployment_id, environment)
    kill_all(environment[TAG])


def start_run(stack: Stack, folder: Path) -> tuple[str, psutil.Process]:
    """Start a run whose stage ignores SIGTERM; return the run's id and its guardian once the stage works."""
    parameters = {"act": "stubborn", "folder": str(folder), "grace_seconds": GRACE_SECONDS}
    run_id = stack.prefect.run(stack.deployment_id, parameters)
    assert eventually((folder / "ready").exists, START_SECONDS), stack.prefect.logs()
    return run_id, find(stack.environment[TAG], "flows.guardian")


def cancel(stack: Stack, run_id: str, flow: psutil.Process) -> None:
    stack.prefect.cancel(run_id)


def kill_flow(stack: Stack, run_id: str, flow: psutil.Process) -> None:
    flow.kill()


def kill_worker(stack: Stack, run_id: str, flow: psutil.Process) -> None:
    worker = flow.parent()
    assert worker is not None
    assert POOL in worker.cmdline()
    worker.kill()


@pytest.mark.parametrize(
    ("kill", "state"),
    [(cancel, "Cancelled"), (kill_flow, "Crashed"), (kill_worker, "Crashed")],  # the last one ends the worker
)
def test_a_stage_ends_with_its_prefect_run(
    stack: Stack, tmp_path: Path, kill: Callable[[Stack, str, psutil.Process], None], state: str
) -> None:
    run_id, guardian = start_run(stack, tmp_path)
    flow = guardian.parent()
    assert flow is not None
    stage = [guardian, *guardian.children(recursive=True)]
    assert len(stage) == 4

    kill(stack, run_id, flow)

    assert eventually(lambda: not any(process.is_running() for process in stage), STATE_SECONDS), describe(stage)
    assert eventually(lambda: stack.prefect.state(run_id) == state, STATE_SECONDS), stack.prefect.logs()
    assert eventually(lambda: not flow.is_running(), LIMIT_SECONDS)
