"""How a run of the flow ends: its report, its record, and the state that Prefect and CI read."""

from pathlib import Path
from typing import Any

from prefect import State
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from evaluation.report import read_inputs, render_report
from flows.context import Run
from tuneline.contracts.artifacts import Outcome, Verdict
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.store import write_whole
from tuneline.registry.tracking import RunStatus
from tuneline.registry.versions import record_report

STATE_NAMES = {Outcome.PROMOTE: "Completed", Outcome.REJECT: "Rejected", Outcome.INCONCLUSIVE: "Inconclusive"}
EXIT_CODES = {
    Outcome.PROMOTE: ExitCode.DONE,
    Outcome.REJECT: ExitCode.REJECTED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


def name_of_run() -> str:
    """Name a flow run after its config and overrides, as it stands in the UI's list."""
    parameters = flow_run.parameters
    return " ".join([Path(parameters["config"]).stem, *parameters["overrides"]])


def conclude(run: Run, verdict: Verdict) -> State[RunRecord]:
    """Write the report, close the MLflow run, and give the state that says the verdict.

    A REJECT is a run that did its work: it completes, under the name `Rejected`.
    """
    run.update(outcome=verdict.outcome.value, reasons=verdict.reasons, exit_code=EXIT_CODES[verdict.outcome])
    run.save()
    report = run.settings.store_root / "runs" / f"{run.record.run_id}.html"
    write_whole(report, render_report(read_inputs(run.record, run.spec)))
    _publish(run, report)
    run.update(report=report)
    run.save()
    return Completed(name=STATE_NAMES[verdict.outcome], message=verdict.reasons[0], data=run.record)


def _publish(run: Run, report: Path) -> None:
    assert run.live is not None, "a verdict without training"
    run.live.log_artifact_file(report, "report")
    run.live.finish(RunStatus.FINISHED)
    link = run.live.url or report.as_uri()
    if run.record.model_version is not None:
        record_report(run.registry, run.spec.model_name, run.record.model_version, link)
    create_link_artifact(link, link_text=report.name, key="report", description="The run on one page.")
    create_markdown_artifact(_markdown(run.record), key="verdict", description="The gate's decision.")


def _markdown(record: RunRecord) -> str:
    lines = [f"## {record.outcome}: {record.model} version {record.model_version}", ""]
    lines += [f"- {reason}" for reason in record.reasons]
    lines += ["", "| stage | status | seconds | what it made |", "|---|---|---:|---|"]
    lines += [f"| {line.stage} | {line.status} | {line.seconds:.1f} | {line.made} |" for line in record.stages]
    return "\n".join(lines)


def typed_result(state: State[Any]) -> RunRecord:
    """Return the record of a flow that was run in this process; raises what the flow raised."""
    record = state.result()
    assert isinstance(record, RunRecord)
    return record
