"""The evaluate stage on a model that learned the answers by heart, its base, and a champion."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evaluation_models import make_merged, plain_answer, read_items_of
from serving_images import merged_model
from tiny_model import make_job, make_prepared, make_tiny_base, put_record
from transformers import AutoTokenizer

from evaluation.items import ItemResult, read_items
from evaluation.loading import load_model
from evaluation.run import evaluate
from tuneline.contracts.artifacts import EvalReport, MergedModel, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, Job, JobResult, JobStatus, ProgressEvent
from tuneline.contracts.records import Probe
from tuneline.contracts.store import read_record

MODELS = ("base", "candidate", "champion")
HELD_OUT_ROWS, RETENTION_ROWS = 16, 8


@dataclass(frozen=True)
class Evaluated:
    """One evaluation and everything that it left."""

    job: Job
    report: EvalReport
    items: list[ItemResult]
    events: list[ProgressEvent]

    def of(self, model: str, suite: str) -> list[ItemResult]:
        return [item for item in self.items if (item.model, item.suite) == (model, suite)]

    def metrics(self, model: str, suite: str) -> dict[str, float]:
        [score] = [score for score in self.report.scores if (score.model, score.suite) == (model, suite)]
        return score.metrics


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    prepared = make_prepared(root / "prepared", base, train_rows=4, held_out_rows=HELD_OUT_ROWS)
    return {"base": base, "prepared": prepared, "merged": make_merged(root / "merged", base, prepared)}


def run_stage(
    out_dir: Path, inputs: dict[str, Path], options: dict[str, str] | None = None, **sections: Any
) -> Evaluated:
    sections["evaluation"] = {"max_new_tokens": 8, **sections.get("evaluation", {})}
    job = make_job("evaluate", out_dir, inputs, **sections).model_copy(update={"options": options or {}})
    events: list[ProgressEvent] = []
    report = evaluate(job, events.append)
    return Evaluated(job, report, read_items(out_dir / EvalReport.ITEMS), events)


@pytest.fixture(scope="module")
def evaluated(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return run_stage(
        tmp_path_factory.mktemp("out"),
        {**inputs, "champion": inputs["base"]},
        {"champion_version": "3"},
        evaluation={"metrics": ["exact_match", "json_validity"]},
        serving={"probes": 5},
    )


def test_every_model_is_asked_the_same_items_in_the_same_tokens(evaluated: Evaluated) -> None:
    for suite, rows in (("target", HELD_OUT_ROWS), ("retention", RETENTION_ROWS)):
        asked = [
            [(item.row_id, item.prompt_sha256, item.expected) for item in evaluated.of(model, suite)]
            for model in MODELS
        ]
        assert len(asked[0]) == len(set(asked[0])) == rows
        assert asked[0] == asked[1] == asked[2]


def test_a_model_that_knows_the_answers_scores_and_one_that_does_not_does_not(evaluated: Evaluated) -> None:
    known, unknown = evaluated.metrics("candidate", "target"), evaluated.metrics("base", "target")
    assert (known["exact_match"], known["stopped"], known["json_validity"]) == (1.0, 1.0, 0.0)
    assert known["held_out_loss"] < 0.1
    assert unknown["exact_match"] == 0.0
    assert unknown["held_out_loss"] > 3.0


def test_scores_are_the_means_of_the_items(evaluated: Evaluated) -> None:
    assert [(score.model, score.suite) for score in evaluated.report.scores] == [
        (model, suite) for model in MODELS for suite in ("target", "retention")
    ]
    for score in evaluated.report.scores:
        items = evaluated.of(score.model, score.suite)
        assert score.items == len(items)
        assert score.metrics["exact_match"] == sum(item.answer.strip() == item.expected for item in items) / len(items)
        assert score.metrics["stopped"] == sum(item.stopped for item in items) / len(items)
        tokens = sum(item.answer_tokens for item in items)
        assert score.metrics["held_out_loss"] == pytest.approx(sum(item.nll for item in items) / tokens)


def test_the_same_weights_get_the_same_results_under_another_name(evaluated: Evaluated) -> None:
    for suite in ("target", "retention"):
        renamed = [item.model_copy(update={"model": "base"}) for item in evaluated.of("champion", suite)]
        assert renamed == evaluated.of("base", suite)
    assert evaluated.report.champion_version == "3"


def test_an_answer_is_the_generated_text_without_its_stop_token(evaluated: Evaluated) -> None:
    tokenizer = AutoTokenizer.from_pretrained(evaluated.job.inputs["prepared"] / PreparedData.TOKENIZER)
    model = load_model(evaluated.job.inputs["merged"] / MergedModel.MODEL, "float32")
    prompts = read_items_of(evaluated.job.inputs["prepared"] / PreparedData.HELD_OUT)
    for item, prepared in zip(evaluated.of("candidate", "target"), prompts, strict=True):
        token_ids = plain_answer(model, prepared.prompt_ids, 8, {tokenizer.eos_token_id})
        assert item.new_tokens == len(token_ids)
        assert item.answer == tokenizer.decode(token_ids[:-1])


def test_a_stop_token_that_is_ordinary_text_is_no_part_of_the_answer(inputs: dict[str, Path], tmp_path: Path) -> None:
    prepared, merged = (shutil.copytree(inputs[name], tmp_path / name) for name in ("prepared", "merged"))
    stop_token_ids = (read_items_of(prepared / PreparedData.HELD_OUT)[0].answer_ids[0],)
    for folder, stage, kind in ((prepared, "prepare", PreparedData), (merged, "merge", MergedModel)):
        record = read_record(folder, kind)
        put_record(folder, stage, record.model_copy(update={"stop_token_ids": stop_token_ids}))
    first = run_stage(tmp_path / "out", {**inputs, "prepared": prepared, "merged": merged}).of("candidate", "target")[0]
    assert (first.answer, first.stopped, first.new_tokens) == ("", True, 1)


def test_probes_are_the_candidates_answers(evaluated: Evaluated) -> None:
    lines = (evaluated.job.out_dir / EvalReport.PROBES).read_text(encoding="utf-8").splitlines()
    probes = [Probe.model_validate_json(line) for line in lines]
    assert len({probe.id for probe in probes}) == 5
    expected = {
        item.row_id: item.answer_ids for item in read_items_of(evaluated.job.inputs["prepared"] / PreparedData.HELD_OUT)
    }
    assert [probe.answer_ids for probe in probes] == [expected[probe.id] for probe in probes]


def test_progress_counts_items_over_all_models_and_suites(evaluated: Evaluated) -> None:
    planned = len(MODELS) * (HELD_OUT_ROWS + RETENTION_ROWS)
    done = [event.done for event in evaluated.events]
    assert (done[0], done[-1], done == sorted(done)) == (0, planned, True)
    assert {event.planned for event in evaluated.events} == {planned}
    assert {"loading base", "candidate on target", "champion on retention"} <= {
        event.note for event in evaluated.events
    }


def test_without_generation_only_losses_are_measured_and_the_server_still_gets_probes(
    inputs: dict[str, Path], evaluated: Evaluated, tmp_path: Path
) -> None:
    gate = {"metric": "held_out_loss"}
    losses = run_stage(tmp_path, inputs, evaluation={"generate": False}, gate=gate, serving={"probes": 5})
    assert set(losses.metrics("candidate", "target")) == {"held_out_loss"}
    assert {(item.answer, item.stopped, item.new_tokens) for item in losses.items} == {(None, None, 0)}
    assert [item.nll for item in losses.of("base", "target")] == [item.nll for item in evaluated.of("base", "target")]
    assert losses.events[-1].done == losses.events[-1].planned
    probes = [(folder / EvalReport.PROBES).read_text() for folder in (tmp_path, evaluated.job.out_dir)]
    assert probes[0] == probes[1]


def test_max_items_takes_the_same_few_items_for_every_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    few = run_stage(tmp_path, inputs, evaluation={"max_items": 3})
    asked = {(item.suite, item.row_id) for item in few.items}
    assert len(asked) == 6
    assert all(len(few.of(model, suite)) == 3 for model in ("base", "candidate") for suite in ("target", "retention"))


def test_models_are_evaluated_in_the_number_format_that_is_served(
    inputs: dict[str, Path], evaluated: Evaluated, tmp_path: Path
) -> None:
    served = run_stage(tmp_path, inputs, model={"dtype": "float32"}, serving={"dtype": "bfloat16"})
    rounded = [item.nll for item in served.of("base", "target")]
    exact = [item.nll for item in evaluated.of("base", "target")]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_a_champion_with_another_vocabulary_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    champion = shutil.copytree(inputs["base"], tmp_path / "champion")
    tokenizer = AutoTokenizer.from_pretrained(champion)
    tokenizer.add_tokens(["<|other|>"])
    tokenizer.save_pretrained(champion)
    with pytest.raises(UserError, match="another vocabulary"):
        run_stage(tmp_path / "out", {**inputs, "champion": champion})


def test_a_merge_that_changed_the_stop_tokens_is_our_own_bug(inputs: dict[str, Path], tmp_path: Path) -> None:
    merged = shutil.copytree(inputs["merged"], tmp_path / "merged")
    put_record(merged, "merge", merged_model(stop_token_ids=(0,)))
    with pytest.raises(AssertionError, match="stop tokens"):
        run_stage(tmp_path / "out", {**inputs, "merged": merged})


def test_the_child_process_writes_progress_and_its_result(inputs: dict[str, Path], tmp_path: Path) -> None:
    job = make_job("evaluate", tmp_path / "out", inputs, evaluation={"max_new_tokens": 4, "max_items": 2})
    (tmp_path / JOB).write_text(job.model_dump_json(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "evaluation", str(tmp_path)], check=True, timeout=120)
    result = JobResult.model_validate_json((tmp_path / RESULT).read_text(encoding="utf-8"))
    assert result.status is JobStatus.COMPLETED
    assert EvalReport.model_validate(result.artifact).scores[0].items == 2
    assert '"done":8,"planned":8' in (tmp_path / PROGRESS).read_text(encoding="utf-8").splitlines()[-1]
