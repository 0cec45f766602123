"""Our prepare stage and the peers' own preprocessing: the same rows, chat template, tokenizer, length and two cores.

python -m benchmarks.data_preparation [--rows 200000] [--peers trl,llamafactory,axolotl] [--repeats 3] [--scaling]

Rows are made from ../shared/data. Each contender runs in a process of its own, on two cores, with its caches in a fresh
folder; what is timed starts at a JSONL file on disk and ends with tokenised, masked and truncated rows, on disk or
memory-mapped, as its own trainer takes them. Ours does more: cleaning, secrets, leaks, checks and the receipt are on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data_preparation_environments import DEFAULT_FOLDER, PEERS, NotInstallable, interpreter_of
from benchmarks.data_preparation_measuring import ROOT, ContenderFailed, Measurement, measure
from benchmarks.data_preparation_rows import SOURCES, make_model, read_sources, write_rows
from benchmarks.data_preparation_tables import CONSOLE, Result, print_comparison, print_growth, print_warm
from benchmarks.peers.protocol import Task

SEED = 17
HELD_OUT_ROWS = 1_000
MAX_LENGTH_TOKENS = 1024
CORES = 2
GROWTH_ROWS = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Contender:
    """Something that prepares rows."""

    label: str
    interpreter: Path
    driver: str
    near_duplicates: str = "off"


OURS = Contender("tuneline", Path(sys.executable), "benchmarks.peers.run_tuneline")
OURS_WITH_NEAR_DUPLICATES = Contender(
    "tuneline, near-duplicates: report", OURS.interpreter, OURS.driver, near_duplicates="report"
)


class Bench:
    """Rows, the tiny model and scratch space, all below one folder."""

    def __init__(self, folder: Path) -> None:
        """Use an empty folder; the rows are made on demand."""
        self._folder = folder
        self._sources = read_sources()
        self._model = folder / "model"

    def run(self, contender: Contender, count: int, *, watch_memory: bool = False) -> Measurement:
        """Run a contender once, in a fresh folder that is gone afterwards.

        Raises:
            ContenderFailed: it ended without its figures.
        """
        rows = self._rows(count)
        with tempfile.TemporaryDirectory(dir=self._folder) as work:
            task = Task(
                train=str(rows / "train.jsonl"),
                held_out=str(rows / "held_out.jsonl"),
                model=str(self._model),
                work=work,
                max_length_tokens=MAX_LENGTH_TOKENS,
                workers=CORES,
                near_duplicates=contender.near_duplicates,
            )
            return measure(contender.interpreter, contender.driver, task, watch_memory=watch_memory)

    def run_again(self, count: int, repeats: int) -> list[float]:
        """Seconds of the whole command `tuneline data inspect CONFIG` once the same command has prepared the rows.

        Raises:
            ContenderFailed: the command failed, or prepared the rows again.
        """
        rows = self._rows(count)
        data = {
            "train": str(rows / "train.jsonl"),
            "held_out": str(rows / "held_out.jsonl"),
            "max_length_tokens": MAX_LENGTH_TOKENS,
        }
        with tempfile.TemporaryDirectory(dir=self._folder) as home:
            config = Path(home) / "config.yaml"
            spec = {"name": "benchmark", "model": {"base": str(self._model)}, "data": data}
            config.write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
            _inspect(config, Path(home), "made in")
            return [_inspect(config, Path(home), "found") for _ in range(repeats)]

    def _rows(self, count: int) -> Path:
        """Return the folder of `train.jsonl` (so many rows) and `held_out.jsonl`; the first one makes the model too."""
        folder = self._folder / f"rows-{count}"
        if not folder.exists():
            folder.mkdir()
            counts = {folder / "train.jsonl": count, folder / "held_out.jsonl": HELD_OUT_ROWS}
            write_rows(self._sources, SEED, counts)
        if not self._model.exists():
            make_model(folder / "train.jsonl", self._model)
        return folder


def _inspect(config: Path, home: Path, outcome: str) -> float:
    environment = {**os.environ, "TUNELINE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tuneline.cli", "data", "inspect", str(config)]
    started = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if ended.returncode != 0:
        raise ContenderFailed(ended.stderr[-2000:])
    if f"({outcome}" not in ended.stdout:  # an edit of tuneline.data between the runs, for instance
        raise ContenderFailed(f"expected to read `{outcome}` but got:\n{ended.stdout[-500:]}")
    return seconds


def main() -> None:
    options = _options()
    if not SOURCES.is_dir():
        sys.exit(f"no rows to make others from: {SOURCES} is absent")
    contenders = [OURS, OURS_WITH_NEAR_DUPLICATES, *_peers(options.peers, options.peer_envs.absolute())]
    with tempfile.TemporaryDirectory(prefix="tuneline-bench-") as folder:
        bench = Bench(Path(folder))
        results = _measure(bench, contenders, options.rows, options.repeats)
        print_comparison(results, OURS.label, CORES)
        if any(result.label == OURS.label for result in results):
            _print_warm(bench, options.rows, options.repeats)
        if options.scaling:
            finalists = _finalists(contenders, results)
            growth = [line for count in GROWTH_ROWS for line in _measure(bench, finalists, count, repeats=1)]
            print_growth(sorted(growth, key=lambda result: result.label))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_preparation")
    parser.add_argument("--rows", type=int, default=200_000, help="training rows that every contender prepares")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s; empty for none")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each contender; medians are shown")
    parser.add_argument("--scaling", action="store_true", help=f"also run ours and the best peer at {GROWTH_ROWS} rows")
    parser.add_argument("--peer-envs", type=Path, default=DEFAULT_FOLDER, help="folder of the peers' environments")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := sorted(set(options.peers) - set(PEERS)):
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return options


def _peers(names: Sequence[str], folder: Path) -> Iterator[Contender]:
    for peer in (PEERS[name] for name in names):
        try:
            yield Contender(peer.label, interpreter_of(peer, folder), peer.driver)
        except NotInstallable as error:
            CONSOLE.print(f"{peer.label} left out, it does not install here: {error}", markup=False)


def _print_warm(bench: Bench, count: int, repeats: int) -> None:
    try:
        print_warm(bench.run_again(count, repeats))
    except ContenderFailed as error:
        CONSOLE.print(f"the same config again failed:\n{error}", markup=False)


def _finalists(contenders: Sequence[Contender], results: Sequence[Result]) -> list[Contender]:
    """Return ours and the fastest peer, of those that ran."""
    peers = [result for result in results if not result.label.startswith(OURS.label)]
    best = min(peers, key=lambda result: result.seconds).label if peers else None
    ran = {result.label for result in results}
    return [one for one in contenders if one.label in ran and one.label in (OURS.label, best)]


def _measure(bench: Bench, contenders: Sequence[Contender], count: int, repeats: int) -> list[Result]:
    """Run each `repeats` times for the clock and once for its memory, in turns: a busy minute meets all of them."""
    runs: dict[Contender, list[Measurement]] = {contender: [] for contender in contenders}
    for turn in range(repeats + 1):
        for contender in list(runs):
            try:
                runs[contender].append(bench.run(contender, count, watch_memory=turn == repeats))
            except ContenderFailed as error:
                CONSOLE.print(f"{contender.label} failed:\n{error}", markup=False)
                del runs[contender]
    return [Result(one.label, count, timed, watched.peak) for one, (*timed, watched) in runs.items()]


if __name__ == "__main__":
    main()
