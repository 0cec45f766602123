"""The environment variables of a stage's child."""

import os
import sys
from pathlib import Path

import psutil

from tuneline.contracts.settings import TELEMETRY_OFF

CORE_SAMPLE_SECONDS = 0.5
SOURCE_ROOT = Path(__file__).resolve().parents[1]


def child_environment(launched: bool) -> dict[str, str]:
    """Return the flow's environment with telemetry off, unbuffered output, our sources and a number of threads.

    Args:
        launched: whether a launcher starts the stage; torchrun and accelerate share the cores among ranks themselves.
    """
    inherited = os.environ
    defaults = {**TELEMETRY_OFF, "PYTHONUNBUFFERED": "1"}
    if not launched and "OMP_NUM_THREADS" not in inherited:
        defaults["OMP_NUM_THREADS"] = str(free_cores())
    # The child runs the code that the flow was loaded from, whatever the working folder holds under the same names.
    python_path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), inherited.get("PYTHONPATH")]))
    return {**defaults, **inherited, "PYTHONPATH": python_path}


def free_cores() -> int:
    """Count the cores that are idle now, within this process's affinity and the container's CPU quota; at least 1.

    More OpenMP threads than free cores make each step several times slower: threads spin while they wait for another.
    """
    busy_cores = sum(psutil.cpu_percent(CORE_SAMPLE_SECONDS, percpu=True)) / 100
    idle_cores = (os.cpu_count() or 1) - busy_cores
    return max(1, min(round(idle_cores), len(os.sched_getaffinity(0)), _cpu_quota()))


def _cpu_quota() -> int:
    """Whole cores that cgroup v2 grants, or a number beyond any machine's."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except OSError:
        quota, period = "max", "1"
    return sys.maxsize if quota == "max" else max(1, int(quota) // int(period))
