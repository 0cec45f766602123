"""The prepare stage as the flow starts it: a child process of its own, on files with every fault."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from tiny_model import make_tiny_base

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, Job, JobResult, JobStatus, ProgressEvent
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import write_whole


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def run_prepare(tmp_path: Path, base: Path, **data: Any) -> tuple[JobResult, Path]:
    out_dir, job_dir = tmp_path / "out", tmp_path / "job"
    out_dir.mkdir()
    job_dir.mkdir()
    spec = RunSpec.model_validate({"name": "t", "model": {"base": str(base)}, "data": data})
    job = Job(stage="prepare", spec=spec, inputs={"base": base}, out_dir=out_dir)
    write_whole(job_dir / JOB, job.model_dump_json())
    subprocess.run([sys.executable, "-m", "tuneline.data", str(job_dir)], check=False, timeout=120)
    return JobResult.model_validate_json((job_dir / RESULT).read_text()), out_dir


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"red kitchen {n}", "completion": f"green {n % 5}"} for n in range(start, start + count)]


def test_a_receipt_accounts_for_every_row_and_token(tmp_path: Path, base: Path) -> None:
    result, out_dir = run_prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", rows(60)),
        held_out=write_rows(tmp_path / "held.jsonl", rows(20, start=50)),
        replay=write_rows(tmp_path / "replay.jsonl", rows(40, start=500)),
        replay_share=0.25,
        retention=write_rows(tmp_path / "retention.jsonl", rows(8, start=600)),
    )
    assert result.status is JobStatus.COMPLETED, result
    prepared = PreparedData.model_validate(result.artifact)
    receipt = json.loads((out_dir / PreparedData.RECEIPT).read_text())
    train = load_from_disk(out_dir / PreparedData.TRAIN)
    assert (prepared.train_rows, prepared.held_out_rows, prepared.retention_rows) == (80, 20, 8)
    assert len(train) == 80
    assert prepared.train_tokens == sum(len(ids) for ids in train["input_ids"]) == receipt["tokens"]["train"]
    learned = sum(label != IGNORED_LABEL for labels in train["labels"] for label in labels)
    assert prepared.learned_tokens == learned == receipt["tokens"]["learned"]
    assert [source["rows_read"] for source in receipt["sources"]] == [60, 20, 40, 8]
    assert receipt["checks"]["ends_with_stop_share"] == 1.0
    assert receipt["checks"]["prompts_in_both"] == 10
    assert "".join(piece["text"] for piece in receipt["samples"][0]["pieces"] if piece["learned"]).endswith("<|end|>")
    items = load_from_disk(out_dir / PreparedData.HELD_OUT)
    assert items[0]["prompt_ids"] + items[0]["answer_ids"] == items[0]["input_ids"]
    assert json.loads(items[0]["messages"]) == [{"role": "user", "content": "red kitchen 50"}]
    events = [
        ProgressEvent.model_validate_json(line) for line in (tmp_path / "job" / PROGRESS).read_text().split("\n")[:-1]
    ]
    assert [(event.note, event.done, event.planned) for event in events] == [
        ("train", 60, 60), ("replay", 40, 40), ("held out", 20, 20), ("retention", 8, 8)
    ]  # fmt: skip


LONG = [{"prompt": "red " * 200, "completion": "green"}, *rows(30)]
FAULTS: dict[str, tuple[list[dict[str, str]], dict[str, Any], str]] = {
    "empty answer": ([*rows(30), {"prompt": "p", "completion": "  "}], {}, "column `completion` is empty"),
    "missing column": (rows(30), {"completion_column": "answer"}, "no column `answer`"),
    "too long": (LONG, {"max_length_tokens": 64}, "rows are too long"),
    "no group column": (rows(30), {"held_out_group": "intent"}, "no column `intent`"),
    "all held out": (rows(1), {"held_out_share": 0.999}, "the split leaves 0 rows to train on"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rows_is_one_clear_message_and_nothing_is_prepared(
    tmp_path: Path, base: Path, fault: str
) -> None:
    faulty, settings, what = FAULTS[fault]
    result, out_dir = run_prepare(tmp_path, base, train=write_rows(tmp_path / "train.jsonl", faulty), **settings)
    assert result.status is JobStatus.WRONG_INPUT
    assert any(what in problem.what for problem in result.problems), result.problems
    assert not (out_dir / PreparedData.RECEIPT).exists()


@pytest.mark.parametrize(("policy", "kept", "longest"), [("drop", 30, 20), ("truncate_left", 31, 64)])
def test_long_rows_are_dropped_or_cut_as_asked_and_counted(
    tmp_path: Path, base: Path, policy: str, kept: int, longest: int
) -> None:
    result, out_dir = run_prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", LONG),
        held_out=write_rows(tmp_path / "held.jsonl", rows(5)),
        max_length_tokens=64,
        over_length=policy,
    )
    assert result.status is JobStatus.COMPLETED, result
    train = load_from_disk(out_dir / PreparedData.TRAIN)
    assert len(train) == kept
    assert max(len(ids) for ids in train["input_ids"]) <= longest
    steps = json.loads((out_dir / PreparedData.RECEIPT).read_text())["steps"]
    assert sum(steps[0]["dropped"].values()) == 1
    assert steps[0]["examples"] == [f"{tmp_path}/train.jsonl:1"]
