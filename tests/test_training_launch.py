import subprocess
import sys

import pytest
import torch
from processes import ROOT, program_environment
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base

from training.launch import processes_of
from training.train import train
from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.jobs import JOB, RESULT, JobResult, JobStatus


def write_job(folder, job):
    folder.mkdir(exist_ok=True)
    (folder / JOB).write_text(job.model_dump_json())
    return folder


def test_only_a_training_on_several_gpus_takes_several_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    several = {"budget": {"gpus": 4}}
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}, **several)))) == 4
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {})))) == 1
    assert processes_of(str(write_job(tmp_path / "job", make_job("merge", tmp_path / "out", {}, **several)))) == 1
    monkeypatch.setenv("RANK", "0")
    assert processes_of(str(write_job(tmp_path / "job", make_job("train", tmp_path / "out", {}, **several)))) == 1


def run_child(job_dir):
    with (job_dir / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "training", str(job_dir)]
        subprocess.run(command, cwd=ROOT, env=program_environment(), stdout=log, stderr=log, timeout=240, check=False)
    return JobResult.model_validate_json((job_dir / RESULT).read_text())


@pytest.mark.long
def test_two_processes_train_what_one_trains(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    inputs = {"base": base, "prepared": make_prepared(tmp_path / "prepared", base)}
    alone = make_job("train", tmp_path / "alone", {**inputs, "plan": make_plan(tmp_path / "plan-of-one")})
    train(alone, lambda _: None)
    plan = make_plan(tmp_path / "plan-of-two", micro_batch_rows=4)
    together = make_job("train", tmp_path / "together", {**inputs, "plan": plan}, budget={"gpus": 2})
    result = run_child(write_job(tmp_path / "job", together))
    assert result.status is JobStatus.COMPLETED, (tmp_path / "job" / "output.log").read_text()
    found, expected = (
        load_file(job.out_dir / Adapter.WEIGHTS / "adapter_model.safetensors") for job in (together, alone)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
