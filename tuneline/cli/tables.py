"""Records as tables, for people."""

import json
import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tuneline.cli.machine import MachineCheck
from tuneline.contracts.artifacts import Estimate, Plan
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.settings import Settings

STATUS_STYLES = {"made": "green", "found": "cyan", "skipped": "yellow", "failed": "bold red"}
OUTCOME_STYLES = {"PROMOTE": "bold green", "REJECT": "bold red", "INCONCLUSIVE": "bold yellow", "FAILED": "bold red"}
GIB = 2**30


def print_run(record: RunRecord, out: Console) -> None:
    """Print a run: its stages, the verdict with its reasons, and where to look further."""
    table = Table(
        title=f"{record.run_id}  ({record.seconds:.0f} s)", title_justify="left", title_style="bold", box=None
    )
    table.add_column("stage")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("what it made", overflow="fold")
    for line in record.stages:
        style = STATUS_STYLES[line.status]
        table.add_row(line.stage, f"[{style}]{line.status}[/]", f"{line.seconds:.1f}", line.made)
    out.print(table)
    out.print(f"\nverdict  [{OUTCOME_STYLES[record.outcome]}]{record.outcome}[/]")
    for reason in record.reasons:
        out.print(f"  - {reason}", soft_wrap=True)
    if record.error:
        out.print(f"error    {record.error}", soft_wrap=True, style="red", markup=False)
    for name, value in _places(record).items():
        out.print(f"{name:<9}{value}", soft_wrap=True, markup=False)


def _places(record: RunRecord) -> dict[str, str]:
    """Say where a run's results are, and the commands that show more."""
    places = {}
    if record.model_version:
        champion = f" (champion: version {record.champion_version})" if record.champion_version else ""
        places["model"] = f"{record.model} version {record.model_version}{champion}"
    if record.image_digest:
        places["image"] = f"{record.image_reference}\n         {record.image_digest}"
    if record.report:
        places["report"] = f"{record.report}"
    places["again"] = f"tuneline show {record.run_id}"
    places["MLflow"] = _mlflow_place(record.mlflow_tracking_uri)
    places["Prefect"] = _prefect_place()
    if record.image_reference:
        places["serve"] = f"tuneline serve {record.run_id}"
        places["ask"] = curl(record.model)
    return places


def _mlflow_place(uri: str) -> str:
    if uri.startswith("sqlite"):
        return f"mlflow server --backend-store-uri {uri} --workers 1   (http://127.0.0.1:5000)"
    return uri


def _prefect_place() -> str:
    url = os.environ.get("PREFECT_API_URL")
    if url is not None:
        return url.removesuffix("/api")
    home = os.environ.get("PREFECT_HOME", str(Settings.from_environment().prefect_home))
    return f"PREFECT_HOME={home} prefect server start   (http://127.0.0.1:4200)"


def curl(model: str, port: int = 8000) -> str:
    """Write a ready question to the served model."""
    question = {"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}], "temperature": 0}
    return (
        f"curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(question)}'"
    )


def print_plan(plan: Plan, out: Console) -> None:
    """Print a plan: memory by part, time, money, and each derived setting with its reason."""
    out.print(
        f"[bold]{plan.device}[/]: {plan.optimizer_steps:,} optimizer steps, "
        f"{plan.trainable_parameters:,} of {plan.parameters:,} parameters trained"
    )
    memory = Table(title="memory per device", title_justify="left", box=None)
    memory.add_column("part")
    memory.add_column("GiB", justify="right")
    for part, number_bytes in plan.memory_parts_bytes.items():
        memory.add_row(part, f"{number_bytes / GIB:.3f}")
    estimate = plan.memory_bytes
    memory.add_row("all (low, expected, high)", " / ".join(f"{value / GIB:.3f}" for value in _ends(estimate)))
    memory.add_row("limit", f"{plan.memory_limit_bytes / GIB:.3f}")
    out.print(memory)
    out.print(f"time     {plan.hours.low:.3f} to {plan.hours.high:.3f} h, expected {plan.hours.expected:.3f} h")
    if plan.usd:
        out.print(f"money    {plan.usd.low:,.2f} to {plan.usd.high:,.2f} USD, expected {plan.usd.expected:,.2f} USD")
    for derived in plan.derived:
        out.print(f"{derived.key} = {derived.value}  [dim]{derived.reason}[/]", soft_wrap=True)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.low, estimate.expected, estimate.high


def print_checks(checks: Sequence[MachineCheck], out: Console) -> None:
    """Print what a machine has and lacks."""
    table = Table(box=None)
    for column in ("part", "status", "detail"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.part, "[green]yes[/]" if check.present else "[yellow]no[/]", check.detail)
    out.print(table)
