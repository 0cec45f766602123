"""Our training and the peers': the same rows, model, adapter and learned tokens, on the same cores.

python -m benchmarks.training [--rows 600] [--sets problems,chats] [--only tuneline,trl] [--repeats 3] [--cores 2]

Learned tokens per second are those of the whole loop, from the first step's begin to the last one's end: preparation
and imports are apart. Contenders take turns, so that a busy minute meets all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.data_preparation_environments import DEFAULT_FOLDER, PEERS, NotInstallable, interpreter_of
from benchmarks.data_preparation_measuring import OFFLINE, ROOT, UNSET
from benchmarks.data_preparation_rows import SOURCES, make_model, read_sources, write_rows
from benchmarks.machine import describe_machine
from benchmarks.peers.training_protocol import TrainingTask
from benchmarks.training_rows import chat_rows, grow_model, problem_rows, write_chats

CONSOLE = Console(width=200)
SEED = 17
LONGEST_TOKENS = 1_000
MIB = 2**20
VARIANTS = {
    "tuneline": ("defaults",),
    "trl": ("defaults", "tuned", "packed"),
    "llamafactory": ("defaults", "tuned"),
    "axolotl": ("defaults", "tuned"),
}
BASELINE = "trl defaults"


@dataclass(frozen=True)
class Run:
    """One training of a contender."""

    seconds: float
    cpu_seconds: float
    to_first_step_seconds: float
    learned_tokens: int
    steps: int
    peak_bytes: int
    first_loss: float
    last_loss: float

    @property
    def rate(self) -> float:
        """Learned tokens per second."""
        return self.learned_tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Learned tokens per second of processor time, which a busy machine distorts less."""
        return self.learned_tokens / self.cpu_seconds


@dataclass
class Contender:
    """A trainer under one configuration."""

    name: str
    variant: str
    interpreter: Path
    runs: list[Run] = field(default_factory=list)
    failure: str = ""

    @property
    def label(self) -> str:
        """How the table calls it."""
        return self.name if self.name == "tuneline" else f"{self.name} {self.variant}"

    def run(self, task: TrainingTask) -> None:
        """Train once, and keep what was measured; a contender that fails is not run again."""
        if self.failure:
            return
        environment = {name: value for name, value in os.environ.items() if name not in UNSET}
        environment |= {**OFFLINE, "PYTHONPATH": str(ROOT), "HF_HOME": str(task.work_dir / "huggingface")}
        environment |= {"TUNELINE_HOME": str(task.work_dir / "home"), "CUDA_VISIBLE_DEVICES": ""}
        command = [self.interpreter, "-m", f"benchmarks.peers.train_{self.name}", task.to_json()]
        log = task.work_dir / "output.log"
        started = time.perf_counter()
        with (
            log.open("w") as output,
            subprocess.Popen(
                command, cwd=task.work, env=environment, stdout=subprocess.PIPE, stderr=output, text=True
            ) as process,
        ):
            assert process.stdout is not None
            to_first = 0.0
            facts: Mapping[str, Any] | None = None
            for line in process.stdout:
                message = json.loads(line)
                if message.pop("event") == "first":
                    to_first = time.perf_counter() - started
                else:
                    facts = message
        if facts is None:
            said = log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
            self.failure = next((line for line in reversed(said) if "Error" in line), said[-1])
            return
        figures = {name: facts[name] for name in Run.__dataclass_fields__ if name in facts}
        self.runs.append(Run(to_first_step_seconds=to_first, **figures))


def main() -> None:
    options = _options()
    if not SOURCES.is_dir():
        sys.exit(f"no rows to make others from: {SOURCES} is absent")
    with tempfile.TemporaryDirectory(prefix="tuneline-bench-") as folder:
        root = Path(folder)
        parameters = _make_inputs(root, options.sets, options.rows)
        for name in options.sets:
            contenders = list(_contenders(options.only, options.peer_envs.absolute()))
            for _ in range(options.repeats):
                for contender in contenders:
                    with tempfile.TemporaryDirectory(dir=root) as work:
                        files = {part: str(root / f"{name}-{part}.jsonl") for part in ("train", "held_out")}
                        contender.run(
                            TrainingTask(
                                **files,
                                model=str(root / "model"),
                                work=work,
                                variant=contender.variant,
                                cores=options.cores,
                            )
                        )
            _print(name, options, parameters, contenders)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--rows", type=int, default=600, help="training rows, read once")
    parser.add_argument("--sets", default="problems,chats", help="some of %(default)s")
    parser.add_argument("--only", default=",".join(VARIANTS), help="some of %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender; medians are shown")
    parser.add_argument("--cores", type=int, default=2, help="of each contender; threads beyond free cores wait")
    parser.add_argument("--peer-envs", type=Path, default=DEFAULT_FOLDER, help="folder of the peers' environments")
    options = parser.parse_args()
    options.sets, options.only = options.sets.split(","), options.only.split(",")
    return options


def _make_inputs(root: Path, sets: Sequence[str], rows: int) -> int:
    sources = read_sources()
    write_rows(sources, SEED, {root / "for-tokenizer.jsonl": 5_000})
    make_model(root / "for-tokenizer.jsonl", root / "tiny")
    parameters = grow_model(root / "tiny", root / "model")
    makers = {"problems": lambda: problem_rows(sources), "chats": lambda: chat_rows(sources, SEED)}
    for name in sets:
        train, held_out = (root / f"{name}-{part}.jsonl" for part in ("train", "held_out"))
        write_chats(makers[name](), root / "tiny", train, held_out, rows, LONGEST_TOKENS)
    return parameters


def _contenders(names: Sequence[str], folder: Path) -> list[Contender]:
    found = []
    for name in names:
        try:
            own = name == "tuneline"
            interpreter = Path(sys.executable) if own else interpreter_of(PEERS[name], folder)
        except NotInstallable as error:
            CONSOLE.print(f"{name} left out, it does not install here: {error}", markup=False)
            continue
        found += [Contender(name, variant, interpreter) for variant in VARIANTS[name]]
    return found


def _print(name: str, options: argparse.Namespace, parameters: int, contenders: Sequence[Contender]) -> None:
    size = f"{options.rows} rows, {parameters / 1e6:.1f} M parameters, {options.cores} cores"
    title = f"{name}: {size}, medians; {describe_machine()}"
    table = Table(title=title, title_justify="left")
    columns = ("contender", "runs", "learned tokens/s", "min to max", "x TRL's defaults", "per CPU s", "x by CPU")
    for column in (*columns, "steps", "learned tokens", "first step s", "peak MiB", "loss"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    base = next((one for one in contenders if one.label == BASELINE and one.runs), None)
    base_rates = (_rate(base), _cpu_rate(base)) if base else None
    for contender in contenders:
        if not contender.runs:
            table.add_row(contender.label, "0", f"failed: {contender.failure[:80]}")
            continue
        last, rates = contender.runs[-1], [run.rate for run in contender.runs]
        table.add_row(
            contender.label,
            str(len(rates)),
            f"{_rate(contender):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{_rate(contender) / base_rates[0]:.2f}" if base_rates else "",
            f"{_cpu_rate(contender):,.0f}",
            f"{_cpu_rate(contender) / base_rates[1]:.2f}" if base_rates else "",
            str(last.steps),
            f"{last.learned_tokens:,}",
            f"{statistics.median(run.to_first_step_seconds for run in contender.runs):.1f}",
            f"{statistics.median(run.peak_bytes for run in contender.runs) / MIB:,.0f}",
            f"{last.first_loss:.3f} to {last.last_loss:.3f}",
        )
    CONSOLE.print(table)


def _rate(contender: Contender) -> float:
    return statistics.median(run.rate for run in contender.runs)


def _cpu_rate(contender: Contender) -> float:
    return statistics.median(run.cpu_rate for run in contender.runs)


if __name__ == "__main__":
    main()
