"""How the benchmark and a contender's driver talk: JSON lines both ways, at the borders of what is measured.

    driver: everything is imported         -> {"event": "ready"}, waits for a line: memory before the work is measured
    driver: rows are ready for a trainer   -> {"event": "done", "seconds": ..., "cpu_seconds": ...}, waits
    driver: what came out                  -> {"event": "facts", "rows": ..., "tokens": ..., "learned_tokens": ...,
                                              "versions": {...}}

Standard library only, until facts are counted: it runs in every contender's environment.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

IGNORED_LABEL = -100
LIBRARIES = ("datasets", "transformers", "tokenizers")


@dataclass(frozen=True)
class Task:
    """What a contender prepares, the same for all of them."""

    train: str
    """JSONL file of `{"messages": [...]}` rows."""
    held_out: str
    """A second such file, for tuneline alone: it looks for its rows among the training rows."""
    model: str
    """Folder of a tiny model, with the tokenizer and the chat template."""
    work: str
    """Empty folder for whatever the contender writes."""
    max_length_tokens: int
    workers: int
    near_duplicates: str = "off"
    """`data.cleaning.near_duplicates` of tuneline."""

    def to_json(self) -> str:
        """Write the task as the driver's argument."""
        return json.dumps(asdict(self))

    @property
    def work_dir(self) -> Path:
        """The folder to write into."""
        return Path(self.work)


class Driver:
    """The driver's end of the conversation."""

    def __init__(self) -> None:
        """Read the task, keep to as many cores as it has workers, and keep stdout from what libraries print."""
        self.task = Task(**json.loads(sys.argv[1]))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.task.workers])
        self._channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._started = self._cpu_started = 0.0

    def ready(self) -> None:
        """Say that all imports are done; returns when the measured work may begin."""
        self._say(event="ready")
        self._started, self._cpu_started = time.perf_counter(), _cpu_seconds()

    def done(self) -> None:
        """Say that the rows are ready for a trainer."""
        seconds, cpu_seconds = time.perf_counter() - self._started, _cpu_seconds() - self._cpu_started
        self._say(event="done", seconds=seconds, cpu_seconds=cpu_seconds)

    def facts(self, data_set: Any) -> None:
        """Count what came out: a `datasets.Dataset` with the columns `input_ids` and `labels`."""
        rows = tokens = learned_tokens = 0
        for batch in data_set.with_format("arrow").iter(batch_size=10_000):
            rows += batch.num_rows
            tokens += _values(batch["input_ids"]).size
            learned_tokens += int((_values(batch["labels"]) != IGNORED_LABEL).sum())
        versions = {name: version(name) for name in LIBRARIES}
        counts = {"rows": rows, "tokens": tokens, "learned_tokens": learned_tokens}
        self._say(wait=False, event="facts", versions=versions, **counts)

    def _say(self, wait: bool = True, **line: Any) -> None:
        print(json.dumps(line), file=self._channel, flush=True)
        if wait and not sys.stdin.readline():
            sys.exit("the benchmark has gone")


def _cpu_seconds() -> float:
    """Processor time of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _values(column: Any) -> Any:
    """Return the numbers of a column of lists, one after the other."""
    import pyarrow.compute

    return pyarrow.compute.list_flatten(column).to_numpy()
