"""Real rows, which lie beside the project where they are at hand: nothing is lost between the file and the receipt."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.jobs import JOB, RESULT, Job, JobResult, JobStatus
from tuneline.contracts.spec_loading import load_spec
from tuneline.contracts.store import write_whole

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")


def prepare(config: str, tmp_path: Path) -> tuple[PreparedData, dict[str, Any]]:
    spec = load_spec(ROOT / "configs" / f"{config}.yaml")
    job = Job(stage="prepare", spec=spec, inputs={"base": ROOT / spec.model.base}, out_dir=tmp_path / "out")
    job.out_dir.mkdir()
    write_whole(tmp_path / JOB, job.model_dump_json())
    subprocess.run([sys.executable, "-m", "tuneline.data", str(tmp_path)], cwd=ROOT, check=False, timeout=300)
    result = JobResult.model_validate_json((tmp_path / RESULT).read_text())
    assert result.status is JobStatus.COMPLETED, result
    receipt = json.loads((job.out_dir / PreparedData.RECEIPT).read_text())
    return PreparedData.model_validate(result.artifact), receipt


def test_all_of_banking77_is_prepared_and_its_repeated_prompts_are_counted(tmp_path: Path) -> None:
    prepared, receipt = prepare("banking77", tmp_path)
    texts = {}
    for name in ("train", "test"):
        with (DATA / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            texts[name] = [row["text"] for row in csv.DictReader(stream)]
    assert (prepared.train_rows, prepared.held_out_rows) == (len(texts["train"]), len(texts["test"])) == (10_003, 3_080)
    repeated = sum(text in set(texts["train"]) for text in texts["test"])
    assert receipt["checks"]["prompts_in_both"] == repeated
    assert receipt["checks"]["ends_with_stop_share"] == 1.0


def test_gsm8k_loses_only_rows_that_the_receipt_names(tmp_path: Path) -> None:
    prepared, receipt = prepare("gsm8k-qlora", tmp_path)
    steps = {step["step"]: step for step in receipt["steps"]}
    for step, rows, lines in (
        ("render train", prepared.train_rows, 7_473),
        ("render held out", prepared.held_out_rows, 1_319),
    ):
        assert steps[step]["rows_in"] == lines
        assert steps[step]["rows_out"] == rows
        assert rows + sum(steps[step]["dropped"].values()) == lines
