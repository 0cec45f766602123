"""The page that a run leaves behind: what was decided and why, and every figure that led there.

One HTML file that asks nothing of the network, reads in light, dark and print, and shows as far as the run has come.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation import report_figures as figures
from evaluation.charts import ForestRow, forest_row
from evaluation.items import ItemResult, read_items
from evaluation.report_checks import per_cent
from evaluation.report_receipt import receipt_view
from evaluation.report_samples import choose_samples
from tuneline.contracts.artifacts import (
    Adapter,
    EvalReport,
    MergedModel,
    Plan,
    PreparedData,
    Record,
    ServingImage,
    SmokeReport,
    Verdict,
)
from tuneline.contracts.fingerprint import library_version
from tuneline.contracts.receipt import Receipt
from tuneline.contracts.run_record import RunRecord
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import read_record

R = TypeVar("R", bound=Record)
TEMPLATES = Path(__file__).parent / "templates"
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "mlflow", "prefect")


@dataclass(frozen=True)
class ReportInputs:
    """A run and what it made; a part that the run did not reach is absent."""

    run: RunRecord
    spec: RunSpec
    prepared: PreparedData | None = None
    receipt: Receipt | None = None
    plan: Plan | None = None
    adapter: Adapter | None = None
    metrics: tuple[Mapping[str, float], ...] = ()
    """The lines of `metrics.jsonl`."""
    merged: MergedModel | None = None
    evaluation: EvalReport | None = None
    items: tuple[ItemResult, ...] = ()
    prompts: Mapping[str, str] | None = None
    """What the user asked, by row of the held-out data."""
    verdict: Verdict | None = None
    image: ServingImage | None = None
    smoke: SmokeReport | None = None


def read_inputs(run: RunRecord, spec: RunSpec) -> ReportInputs:
    """Read what the stages of a run left in the store."""
    data, trained, judged = (_folder(run, stage) for stage in ("prepare", "train", "evaluate"))
    return ReportInputs(
        run=run,
        spec=spec,
        prepared=_record(data, PreparedData),
        receipt=_read_receipt(data / PreparedData.RECEIPT) if data else None,
        plan=_record(_folder(run, "plan"), Plan),
        adapter=_record(trained, Adapter),
        metrics=_read_metrics(trained / Adapter.METRICS) if trained else (),
        merged=_record(_folder(run, "merge"), MergedModel),
        evaluation=_record(judged, EvalReport),
        items=tuple(read_items(judged / EvalReport.ITEMS)) if judged else (),
        prompts=_read_prompts(data / PreparedData.HELD_OUT) if data and judged else None,
        verdict=_record(_folder(run, "decide"), Verdict),
        image=_record(_folder(run, "package"), ServingImage),
        smoke=_record(_folder(run, "verify"), SmokeReport),
    )


def render_report(inputs: ReportInputs) -> str:
    """Write the page: HTML with its style inside, every text escaped, under a megabyte."""
    plan, adapter, evaluation = inputs.plan, inputs.adapter, inputs.evaluation
    metric = inputs.spec.gate.metric
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            inputs=inputs,
            receipt=receipt_view(inputs.receipt, inputs.spec.data) if inputs.receipt else None,
            run=inputs.run,
            outcome=inputs.verdict.outcome.value if inputs.verdict else inputs.run.outcome,
            forest=_forest(inputs.verdict, metric),
            tiles=tuple(figures.tiles(plan, adapter, evaluation, inputs.smoke, metric)),
            scores=figures.score_table(evaluation.scores) if evaluation else None,
            samples=choose_samples(inputs.items, metric),
            loss=figures.line_of(inputs.metrics, "loss", 760, 260, beside="held_out_loss"),
            small_charts=figures.small_charts(inputs.metrics),
            memory=figures.memory_bar(plan, adapter) if plan else None,
            predictions=figures.predictions(plan, adapter) if plan and adapter else (),
            proofs=figures.proofs(inputs.merged.certificate) if inputs.merged else (),
            config=yaml.safe_dump(inputs.spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
            versions={name: library_version(name) for name in LIBRARIES},
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": figures.size,
        "duration": figures.duration,
        "figure": figures.figure,
        "per_cent": per_cent,
    }
    return environment


def _forest(verdict: Verdict | None, metric: str) -> tuple[ForestRow, ...]:
    if verdict is None:
        return ()
    target_unit = "nats" if metric == "held_out_loss" else "points"
    units = {"json validity": "share", "retention": "points"}
    return tuple(forest_row(check, units.get(check.name, target_unit)) for check in verdict.checks)


def _folder(run: RunRecord, stage: str) -> Path | None:
    line = run.line(stage)
    return line.path if line else None


def _record(folder: Path | None, kind: type[R]) -> R | None:
    return read_record(folder, kind) if folder else None


def _read_receipt(path: Path) -> Receipt:
    return Receipt.model_validate_json(path.read_bytes())


def _read_metrics(path: Path) -> tuple[Mapping[str, float], ...]:
    with path.open(encoding="utf-8") as stream:
        return tuple(json.loads(line) for line in stream)


def _read_prompts(file: Path) -> Mapping[str, str]:
    from datasets import Dataset  # takes seconds to import: only where a report is made

    rows = Dataset.from_file(str(file)).select_columns(["row_id", "messages"])
    asked = {row["row_id"]: json.loads(row["messages"]) for row in rows}
    return {row_id: messages[-1].get("content", "") if messages else "" for row_id, messages in asked.items()}
