"""The evaluate stage on pairs, labelled answers and plain texts."""

from pathlib import Path

import pytest
import torch
from evaluation_models import make_merged
from tiny_model import make_job, make_prepared, make_tiny_base
from tiny_preferences import make_preferences
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.gate import decide
from evaluation.items import read_items
from evaluation.run import evaluate
from evaluation.suites import Draw, read_suites
from tuneline.contracts.artifacts import EvalReport, PreparedData
from tuneline.contracts.records import Probe
from tuneline.contracts.spec import GateSpec

HELD_OUT_ROWS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    base = make_tiny_base(root / "base")
    taught = make_prepared(root / "taught", base, train_rows=96, held_out_rows=HELD_OUT_ROWS)
    return {"base": base, "merged": make_merged(root / "merged", base, taught)}


def run(tmp_path: Path, models: dict[str, Path], kind: str, *, generate: bool = False):
    # From row 96 on, as in the data that the merged model was taught.
    prepared = make_preferences(tmp_path / kind, models["base"], kind, train_rows=96, held_out_rows=HELD_OUT_ROWS)
    gate = {"metric": "exact_match" if generate else "held_out_loss"}
    evaluation = {"generate": generate, "max_new_tokens": 8}
    job = make_job("evaluate", tmp_path / "out", {**models, "prepared": prepared}, evaluation=evaluation, gate=gate)
    report = evaluate(job, lambda _: None)
    return report, read_items(job.out_dir / EvalReport.ITEMS), job


def test_the_loss_of_a_pair_is_that_of_its_better_answer_and_the_more_probable_answer_counts(tmp_path, models):
    report, items, job = run(tmp_path, models, "preference")
    model = AutoModelForCausalLM.from_pretrained(models["base"], dtype=torch.float32)

    @torch.inference_mode()
    def nll(ids, labels) -> float:
        return float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss) * sum(
            label != -100 for label in labels
        )

    [suite] = read_suites(job.inputs["prepared"], Draw(None, 17), 512)
    ours = [item for item in items if item.model == "base"]
    preferred = []
    for row, item in zip(suite.items, ours, strict=True):
        better = nll(row.input_ids, row.labels)
        assert item.nll == pytest.approx(better, rel=1e-4)
        preferred.append(float(better < nll(row.rejected_input_ids, row.rejected_labels)))
    assert [item.metrics for item in ours] == [{"preference_accuracy": one} for one in preferred]
    score = next(score for score in report.scores if score.model == "base")
    assert score.metrics["preference_accuracy"] == pytest.approx(sum(preferred) / HELD_OUT_ROWS)


def test_the_gate_decides_on_the_loss_of_the_better_answers(tmp_path, models):
    report, items, _ = run(tmp_path, models, "preference")
    verdict = decide(report, items, GateSpec(metric="held_out_loss"))
    base, candidate = (score.metrics["held_out_loss"] for score in report.scores)
    [check] = verdict.checks
    assert check.items == HELD_OUT_ROWS
    assert check.estimate == pytest.approx(base - candidate, rel=1e-6)


def test_better_answers_can_be_asked_for_and_matched(tmp_path, models):
    _, items, _ = run(tmp_path, models, "preference", generate=True)
    assert {tuple(item.metrics) for item in items} == {("exact_match", "preference_accuracy")}
    assert all(item.metrics["exact_match"] == (item.answer.strip() == item.expected) for item in items)


def test_answers_that_are_not_wanted_are_no_items(tmp_path, models):
    _, items, job = run(tmp_path, models, "unpaired_preference")
    [suite] = read_suites(job.inputs["prepared"], Draw(None, 17), 512)
    assert all(item.desirable for item in suite.items)
    assert len(suite.items) == HELD_OUT_ROWS * 3 / 4
    assert [item.row_id for item in items if item.model == "base"] == [item.row_id for item in suite.items]
    assert all(not item.metrics for item in items)


def test_plain_texts_are_probed_by_a_message_that_begins_as_they_do(tmp_path, models):
    _, _, job = run(tmp_path, models, "text")
    lines = (job.out_dir / EvalReport.PROBES).read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["prepared"] / PreparedData.TOKENIZER)
    [suite] = read_suites(job.inputs["prepared"], Draw(None, 17), 512)
    texts = {item.row_id: tokenizer.decode(item.input_ids, skip_special_tokens=True) for item in suite.items}
    assert len(lines) == 8
    for probe in map(Probe.model_validate_json, lines):
        [message] = probe.messages
        assert texts[probe.id].startswith(message.content) and len(message.content) > 20
        asked = f"<|user|>{message.content}<|end|><|assistant|>"
        assert tokenizer.decode(probe.prompt_ids) == asked
