"""Run one contender of the data preparation benchmark in a process of its own: seconds, memory, what came out."""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.protocol import Task

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.1
"""A look takes 30 to 50 ms of processor time, so memory is watched in a run of its own, never in one that is timed."""
UNSET = ("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
"""Variables of the caller that would change what a contender does by default."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
}
_PSS = re.compile(r"^(Pss|Pss_Anon|Pss_Shmem): +(\d+) kB$", re.MULTILINE)


class ContenderFailed(Exception):
    """A contender ended without its figures; the message is the end of what it printed."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process tree, shared pages counted once."""

    resident_bytes: int
    """All resident pages (PSS), those of memory-mapped data files included."""
    owned_bytes: int
    """Pages that no file stands behind: what the kernel cannot take back."""

    def above(self, other: "Memory") -> "Memory":
        """Subtract another measurement."""
        return Memory(self.resident_bytes - other.resident_bytes, self.owned_bytes - other.owned_bytes)

    def peak(self, other: "Memory") -> "Memory":
        """Take the larger of each figure."""
        return Memory(max(self.resident_bytes, other.resident_bytes), max(self.owned_bytes, other.owned_bytes))


@dataclass(frozen=True)
class Measurement:
    """One run of a contender."""

    start_seconds: float
    """Interpreter, imports and the tiny model: before the measured work."""
    seconds: float
    """From the file on disk to rows that are ready for a trainer."""
    cpu_seconds: float
    """Processor time of the process and its workers in these seconds: holds on a busy machine too."""
    peak: Memory
    """Above what the process had before the work; zero unless it was watched."""
    rows: int
    tokens: int
    learned_tokens: int
    versions: Mapping[str, str]
    """Of the libraries that do the work, in the contender's environment."""


def measure(interpreter: Path, driver: str, task: Task, *, watch_memory: bool) -> Measurement:
    """Run a contender's driver on a task.

    Args:
        interpreter: of the contender's environment.
        driver: module of `benchmarks.peers`.
        task: what to prepare.
        watch_memory: sample the memory of the process tree, which slows the work.

    Raises:
        ContenderFailed: the driver ended early.
    """
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment |= {**OFFLINE, "PYTHONPATH": str(ROOT), "HF_HOME": str(task.work_dir / "huggingface")}
    log = task.work_dir / "output.log"
    started = time.perf_counter()
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            [interpreter, "-m", driver, task.to_json()],
            cwd=task.work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            _hear(process, "ready", log)
            start_seconds = time.perf_counter() - started
            sampler = _Sampler(process.pid) if watch_memory else None
            with sampler or nullcontext():
                _go_on(process)
                done = _hear(process, "done", log)
            _go_on(process)
            facts = _hear(process, "facts", log)
        finally:
            process.kill()  # has ended by itself unless something failed
    peak = sampler.peak_above_start if sampler else Memory(0, 0)
    return Measurement(start_seconds=start_seconds, peak=peak, **done, **facts)


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str], event: str, log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ContenderFailed("\n".join(log.read_text(encoding="utf-8").splitlines()[-15:]))
    said: dict[str, Any] = json.loads(line)
    assert said.pop("event") == event, line
    return said


class _Sampler:
    """Watches the memory of a process tree from a thread, while the context is open."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._start = self._peak = _tree_memory(self._process)

    def __enter__(self) -> "_Sampler":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_above_start(self) -> Memory:
        """The most that was seen, above what there was at the start."""
        return self._peak.above(self._start)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = self._peak.peak(_tree_memory(self._process))


def _tree_memory(root: psutil.Process) -> Memory:
    resident = owned = 0
    for process in _tree(root):
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it ended between the listing and the look
            continue
        kib = {name: int(value) for name, value in _PSS.findall(rollup)}
        resident += kib.get("Pss", 0) << 10  # 0: ended, and not yet waited for
        owned += (kib.get("Pss_Anon", 0) + kib.get("Pss_Shmem", 0)) << 10
    return Memory(resident, owned)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
