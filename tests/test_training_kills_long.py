"""A training killed at any moment, as often as one likes, ends with the weights of one that was left alone."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, program_environment
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base

from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.jobs import JOB, RESULT, JobResult, JobStatus

KILLS = 24
STEPS = 60
EVERY = 4


def child(job_dir: Path) -> subprocess.Popen[bytes]:
    environment = {**program_environment(), "OMP_NUM_THREADS": "1"}
    with (job_dir / "output.log").open("ab") as log:
        command = [sys.executable, "-m", "training", str(job_dir)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def make(folder: Path, inputs) -> Path:
    job_dir = folder / "job"
    job_dir.mkdir(parents=True)
    training = {"checkpoint_every_optimizer_steps": EVERY, "held_out_loss_every_optimizer_steps": 10}
    job = make_job("train", folder / "out", inputs, adapter={"dropout": 0.1}, training=training)
    (job_dir / JOB).write_text(job.model_dump_json())
    return job_dir


def finish(job_dir: Path) -> float:
    started = time.monotonic()
    assert child(job_dir).wait(timeout=600) == 0, (job_dir / "output.log").read_text()[-3000:]
    result = JobResult.model_validate_json((job_dir / RESULT).read_text())
    assert result.status is JobStatus.COMPLETED
    return time.monotonic() - started


@pytest.mark.long
def test_two_dozen_kills_at_random_moments_cost_no_bit_of_the_weights(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    plan = make_plan(tmp_path / "plan", optimizer_steps=STEPS)
    inputs = {"base": base, "prepared": make_prepared(tmp_path / "prepared", base), "plan": plan}
    alone = make(tmp_path / "alone", inputs)
    whole_seconds = finish(alone)
    job_dir = make(tmp_path / "killed", inputs)
    draw = random.Random(17)
    killed = 0
    while killed < KILLS:
        process = child(job_dir)
        try:
            # Some fall into the imports, some between two steps, some into a save: all moments of a run are drawn from.
            process.wait(timeout=draw.uniform(0.3, 1.0) * whole_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        else:  # it came to its end before its moment: the whole story begins anew
            assert process.returncode == 0
            assert same_weights(tmp_path / "killed", tmp_path / "alone")
            (tmp_path / "killed").rename(tmp_path / f"killed-{killed}")
            job_dir = make(tmp_path / "killed", inputs)
    finish(job_dir)
    assert same_weights(tmp_path / "killed", tmp_path / "alone")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/out" / Adapter.METRICS).read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def same_weights(one: Path, other: Path) -> bool:
    found, expected = (
        load_file(folder / "out" / Adapter.WEIGHTS / "adapter_model.safetensors") for folder in (one, other)
    )
    return found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in expected)
