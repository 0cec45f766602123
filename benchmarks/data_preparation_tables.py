"""The tables of the data preparation benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.data_preparation_measuring import Measurement, Memory
from benchmarks.machine import describe_machine

MIB = 2**20
WARM_GOAL_SECONDS = 2.0
CONSOLE = Console(width=200)
COMPARED = (
    "runs",
    "seconds",
    "min to max",
    "CPU s",
    "rows/s",
    "tokens/s",
    "x ours",
    "peak MiB",
    "anonymous MiB",
    "rows out",
    "tokens out",
    "learned",
    "imports s",
)
NOTES = """\
Seconds: from the JSONL file to rows that are ready for a trainer; start and imports are in the last column.
CPU s: processor time of all its processes in these seconds; it holds where the machine is busy with other work too.
Memory: of the whole process tree, above the imports, shared pages counted once, in a run of its own.
Learned tokens differ by convention only: of the newlines beside an answer, trl learns both, llamafactory the one after
it, axolotl neither."""


@dataclass(frozen=True)
class Result:
    """What was measured of a contender at a number of rows."""

    label: str
    rows: int
    timed: Sequence[Measurement]
    peak: Memory

    @property
    def seconds(self) -> float:
        """Median of the timed runs."""
        return statistics.median(run.seconds for run in self.timed)

    @property
    def cpu_seconds(self) -> float:
        """Median processor time of the timed runs."""
        return statistics.median(run.cpu_seconds for run in self.timed)


def print_comparison(results: Sequence[Result], ours: str, cores: int) -> None:
    """Print a line for each contender, with ratios to the one that is called `ours`, and the libraries they run on."""
    title = f"{results[0].rows:,} rows, {cores} cores, medians; {describe_machine()}" if results else "nothing ran"
    table = _table(title, COMPARED)
    base_seconds = next((result.seconds for result in results if result.label == ours), None)
    for result in results:
        last, all_seconds = result.timed[-1], [run.seconds for run in result.timed]
        table.add_row(
            result.label,
            str(len(result.timed)),
            f"{result.seconds:.1f}",
            f"{min(all_seconds):.1f} to {max(all_seconds):.1f}",
            f"{result.cpu_seconds:.1f}",
            f"{result.rows / result.seconds:,.0f}",
            f"{last.tokens / result.seconds:,.0f}",
            f"{result.seconds / base_seconds:.2f}" if base_seconds else "",
            *_memory(result.peak),
            f"{last.rows:,}",
            f"{last.tokens:,}",
            f"{last.learned_tokens:,}",
            f"{statistics.median(run.start_seconds for run in result.timed):.1f}",
        )
    CONSOLE.print(table)
    for result in results:
        versions = result.timed[-1].versions.items()
        CONSOLE.print(f"{result.label}: " + ", ".join(f"{name} {version}" for name, version in versions))
    CONSOLE.print(NOTES)


def print_growth(results: Sequence[Result]) -> None:
    """Print how seconds and memory of contenders grow with the rows."""
    table = _table(
        f"Growth with the rows; {describe_machine()}",
        ("rows", "seconds", "CPU s", "rows/s", "peak MiB", "anonymous MiB"),
    )
    for result in results:
        table.add_row(
            result.label,
            f"{result.rows:,}",
            f"{result.seconds:.1f}",
            f"{result.cpu_seconds:.1f}",
            f"{result.rows / result.seconds:,.0f}",
            *_memory(result.peak),
        )
    CONSOLE.print(table)


def print_warm(seconds: Sequence[float]) -> None:
    """Print what the same config costs again, when everything is found."""
    CONSOLE.print(
        f"tuneline data inspect of the same config again, whole command: {statistics.median(seconds):.2f} s "
        f"({min(seconds):.2f} to {max(seconds):.2f}; asked for at most {WARM_GOAL_SECONDS:.0f})"
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _memory(peak: Memory) -> tuple[str, str]:
    return f"{peak.resident_bytes / MIB:,.0f}", f"{peak.owned_bytes / MIB:,.0f}"
