"""What it costs to ask for help, to validate a config, and to import the flow.

python -m benchmarks.imports
"""

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine

RUNS = 7
COMMANDS = {
    "python -c pass": (["-c", "pass"], None),
    "tuneline --help": (["-m", "tuneline.cli", "--help"], 1.0),
    "tuneline validate configs/quickstart.yaml": (["-m", "tuneline.cli", "validate", "configs/quickstart.yaml"], 1.0),
    "import flows.finetune": (["-c", "import flows.finetune"], None),
}


def wall_seconds(arguments: list[str]) -> float:
    """Time a whole process, start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    table = Table(title=f"{describe_machine()}; {RUNS} runs each, after one that is not counted", title_justify="left")
    for column in ("command", "median s", "min", "max", "asked for at most"):
        table.add_column(column)
    for name, (arguments, limit) in COMMANDS.items():
        wall_seconds(arguments)
        seconds = [wall_seconds(arguments) for _ in range(RUNS)]
        figures = [statistics.median(seconds), min(seconds), max(seconds)]
        table.add_row(name, *(f"{value:.2f}" for value in figures), f"{limit:.1f}" if limit else "")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
