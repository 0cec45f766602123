"""What the machine does while a stage trains: sampled in the flow's process, away from the training's own.

The names are those of MLflow's system metrics, so that its page of that name shows them. GPUs are asked for through
`nvidia-smi`, which comes with the driver.
"""

import logging
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import psutil

SAMPLE_SECONDS = 10.0
NVIDIA_SMI_SECONDS = 5.0
MIB, MEGABYTE = 2**20, 1e6
GPU_FIGURES = {
    "utilization.gpu": ("utilization_percentage", 1.0),
    "memory.used": ("memory_usage_megabytes", MIB / MEGABYTE),
    "power.draw": ("power_usage_watts", 1.0),
}
"""What `nvidia-smi` calls a figure; what MLflow calls it, and the factor from the one's unit to the other's."""
logger = logging.getLogger(__name__)


class SampleLog(Protocol):
    """Takes samples without making its caller wait."""

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Queue a sample."""


@contextmanager
def system_metrics(log: SampleLog, seconds: float = SAMPLE_SECONDS) -> Iterator[None]:
    """Log a sample every few seconds while the block runs."""
    ended = threading.Event()

    def sample() -> None:
        psutil.cpu_percent()  # each call gives the mean since the one before
        while not ended.wait(seconds):
            try:
                log.log_sample(machine_figures() | gpu_figures())
            except Exception:  # figures for people must never end a training
                logger.exception("the system metrics end here")
                return

    thread = threading.Thread(target=sample, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def machine_figures() -> dict[str, float]:
    """Read processor (since the last reading) and memory of the whole machine."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
    }


def gpu_figures() -> dict[str, float]:
    """Ask the driver about every GPU; empty where there is none, or it does not answer in time."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return {}
    query = [nvidia_smi, f"--query-gpu=index,{','.join(GPU_FIGURES)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_SECONDS).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    return read_gpu_figures(answer)


def read_gpu_figures(answer: str) -> dict[str, float]:
    """Read the lines of `nvidia-smi`, one a GPU; what a GPU does not measure, as `[N/A]`, is left out."""
    figures = {}
    for line in answer.splitlines():
        index, *values = (field.strip() for field in line.split(","))
        for (name, factor), value in zip(GPU_FIGURES.values(), values, strict=True):
            if value.replace(".", "", 1).isdigit():
                figures[f"system/gpu_{index}_{name}"] = float(value) * factor
    return figures
