"""What the pipeline costs beside the stages' own work: a first run in an empty home, then the same run again.

python -m benchmarks.orchestration
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine

CONFIG = "configs/quickstart.yaml"
REPEATS = 5


def run_once(home: str) -> tuple[float, float, set[str]]:
    """Run the config; returns wall seconds, the seconds of its stages, and the statuses that occurred."""
    environment = {**os.environ, "TUNELINE_HOME": home}
    command = [sys.executable, "-m", "tuneline.cli", "run", CONFIG, "--json"]
    started = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if not ended.stdout:
        sys.exit(ended.stderr)
    stages = json.loads(ended.stdout)["stages"]
    return wall, sum(stage["seconds"] for stage in stages), {stage["status"] for stage in stages}


def main() -> None:
    """Print the table."""
    table = Table(title=f"{CONFIG} on {describe_machine()}", title_justify="left")
    for column in ("run", "stages were", "wall s", "stages' own s", "orchestration s", "asked for at most"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as home:
        wall, own, statuses = run_once(home)
        row = ("first, empty home", ", ".join(sorted(statuses)), f"{wall:.1f}", f"{own:.1f}", f"{wall - own:.1f}", "30")
        table.add_row(*row)
        again = [run_once(home) for _ in range(REPEATS)]
    walls, owns = [run[0] for run in again], [run[1] for run in again]
    overheads = [wall - own for wall, own, _ in again]
    table.add_row(
        f"again, median of {REPEATS} ({min(walls):.1f} to {max(walls):.1f})",
        ", ".join(sorted(set().union(*(run[2] for run in again)))),
        f"{statistics.median(walls):.1f}",
        f"{statistics.median(owns):.1f}",
        f"{statistics.median(overheads):.1f}",
        "15 in all",
    )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
