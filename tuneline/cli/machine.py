"""What this machine has for a run, and what it lacks."""

import os
import shutil
import subprocess
import sys

from tuneline.contracts.artifacts import Record
from tuneline.contracts.errors import UserError
from tuneline.contracts.fingerprint import library_version
from tuneline.contracts.settings import Settings

LIBRARIES = ("prefect", "mlflow", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
GIB = 2**30
LEAST_FREE_DISK_GIB = 15
"""The quickstart's environment (2 GiB), its two images (5 GiB) and their building (5 GiB), with room to spare."""


class MachineCheck(Record):
    """One part of the machine."""

    part: str
    present: bool
    detail: str


def examine(settings: Settings) -> list[MachineCheck]:
    """Look at every part that a run may use."""
    return [
        MachineCheck(part="python", present=sys.version_info >= (3, 11), detail=sys.version.split()[0]),
        _libraries(),
        _processor(),
        _gpus(),
        _disk(settings),
        _docker(),
        _mlflow(settings),
        _prefect(),
    ]


def _libraries() -> MachineCheck:
    versions = {name: library_version(name) for name in LIBRARIES}
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    return MachineCheck(part="libraries", present="absent" not in versions.values(), detail=detail)


def _processor() -> MachineCheck:
    from tuneline.planning.hardware import this_machine

    machine = this_machine()
    detail = f"{len(os.sched_getaffinity(0))} cores, {machine.available_memory_bytes / GIB:.1f} GiB of memory to use"
    return MachineCheck(part="processor", present=True, detail=detail)


def _gpus() -> MachineCheck:
    if shutil.which("nvidia-smi") is None:
        return MachineCheck(part="GPU", present=False, detail="no nvidia-smi: everything runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return MachineCheck(
        part="GPU", present=listed.returncode == 0, detail=listed.stdout.strip() or listed.stderr.strip()
    )


def _disk(settings: Settings) -> MachineCheck:
    existing = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free_gib = shutil.disk_usage(existing).free / GIB
    detail = f"{free_gib:.0f} GiB free for {settings.home} (the quickstart wants {LEAST_FREE_DISK_GIB})"
    return MachineCheck(part="disk", present=free_gib >= LEAST_FREE_DISK_GIB, detail=detail)


def _docker() -> MachineCheck:
    from tuneline.serving.engine import require_engine

    try:
        engine = require_engine()
    except UserError as error:
        return MachineCheck(part="Docker", present=False, detail=f"{error.problems[0].what}: no image can be verified")
    return MachineCheck(part="Docker", present=True, detail=str(engine))


def _mlflow(settings: Settings) -> MachineCheck:
    from tuneline.registry.connection import connect

    try:
        registry = connect(settings)
    except UserError as error:
        return MachineCheck(part="MLflow", present=False, detail=str(error.problems[0]))
    return MachineCheck(part="MLflow", present=True, detail=registry.address)


def _prefect() -> MachineCheck:
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        detail = "PREFECT_API_URL is not set: `tuneline run` starts a temporary server"
        return MachineCheck(part="Prefect", present=True, detail=detail)
    from flows.local import check_prefect

    try:
        check_prefect(url)
    except UserError as error:
        return MachineCheck(part="Prefect", present=False, detail=str(error.problems[0]))
    return MachineCheck(part="Prefect", present=True, detail=url)
