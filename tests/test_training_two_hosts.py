"""A training on two hosts goes on when one of them is killed and comes back, or falls silent."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from processes import ROOT, TAG, describe, eventually, kill_all, program_environment, tagged
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from two_hosts import Host, two_hosts

from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, JobResult, JobStatus

pytestmark = pytest.mark.long

STEPS, EVERY = 60, 5
START_SECONDS = 120
"""Time for two interpreters to load torch on two cores that others use as well."""


@dataclass
class Machine:
    """A host and what was started on it."""

    host: Host
    log: Path
    tags: list[str] = field(default_factory=list)

    def start(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = program_environment(**variables)
        self.tags.append(environment[TAG])
        with self.log.open("ab") as log:
            started = [*self.host.command(sys.executable, *command)]
            return subprocess.Popen(started, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        for tag in self.tags:
            kill_all(tag)

    def alive(self) -> str:
        return describe([process for tag in self.tags for process in tagged(tag)])


@dataclass
class Cluster:
    """Two machines, and the job that they are to do."""

    first: Machine
    second: Machine
    job_dir: Path

    @property
    def rendezvous(self) -> str:
        return f"{self.first.host.address}:29431"

    def lead(self) -> subprocess.Popen[bytes]:
        return self.first.start(
            "-m", "training", str(self.job_dir), TUNELINE_NODES="2", TUNELINE_RENDEZVOUS=self.rendezvous
        )

    def join(self) -> subprocess.Popen[bytes]:
        return self.second.start("-m", "tuneline.cli", "node", TUNELINE_RENDEZVOUS=self.rendezvous)

    def step(self) -> int:
        progress = self.job_dir / PROGRESS
        lines = progress.read_text().splitlines(keepends=True) if progress.exists() else []
        return max((json.loads(line)["done"] for line in lines if line.endswith("\n")), default=0)

    def reached(self, step: int) -> bool:
        return eventually(lambda: self.step() >= step or (self.job_dir / RESULT).exists(), START_SECONDS)

    def result(self) -> JobResult:
        return JobResult.model_validate_json((self.job_dir / RESULT).read_text())

    def logs(self) -> str:
        return "\n".join(f"== {machine.log}\n{machine.log.read_text()}" for machine in (self.first, self.second))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", optimizer_steps=STEPS, micro_batch_rows=4)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


def write_job(folder: Path, inputs) -> Path:
    job_dir = folder / "job"
    job_dir.mkdir()
    training = {"checkpoint_every_optimizer_steps": EVERY, "fsdp": True}
    job = make_job("train", folder / "out", inputs, adapter={"dropout": 0.1}, training=training, budget={"gpus": 2})
    (job_dir / JOB).write_text(job.model_dump_json())
    return job_dir


@pytest.fixture(scope="module")
def expected(tmp_path_factory, inputs) -> dict[str, torch.Tensor]:
    """Weights of two processes on one host that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    job_dir = write_job(folder, inputs)
    command = [sys.executable, "-m", "training", str(job_dir)]
    subprocess.run(command, cwd=ROOT, env=program_environment(), check=True, timeout=300)
    return load_file(folder / "out" / Adapter.WEIGHTS / "adapter_model.safetensors")


@pytest.fixture
def cluster(tmp_path, inputs) -> Iterator[Cluster]:
    job_dir = write_job(tmp_path, inputs)
    with two_hosts() as (first, second):
        made = Cluster(Machine(first, tmp_path / "first.log"), Machine(second, tmp_path / "second.log"), job_dir)
        try:
            yield made
        finally:
            made.first.kill()
            made.second.kill()


def assert_done(cluster: Cluster, expected, *processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        assert process.wait(timeout=300) == ExitCode.DONE, cluster.logs()
    assert cluster.result().status is JobStatus.COMPLETED
    found = load_file(cluster.job_dir.parent / "out" / Adapter.WEIGHTS / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert cluster.first.alive() == cluster.second.alive() == ""


def test_a_host_that_is_killed_and_comes_back_costs_no_bit_of_the_weights(cluster, expected):
    leader, joiner = cluster.lead(), cluster.join()
    assert cluster.reached(EVERY + 2), cluster.logs()
    cluster.second.kill()
    joiner.wait(timeout=30)
    assert eventually(lambda: "another one from step" in cluster.first.log.read_text(), 60), cluster.logs()
    assert leader.poll() is None
    assert_done(cluster, expected, leader, cluster.join())


def test_the_first_host_is_waited_for_when_it_is_killed(cluster, expected):
    leader, joiner = cluster.lead(), cluster.join()
    assert cluster.reached(EVERY + 2), cluster.logs()
    cluster.first.kill()
    leader.wait(timeout=30)
    assert eventually(lambda: "the first node is gone" in cluster.second.log.read_text(), 60), cluster.logs()
    assert joiner.poll() is None
    assert_done(cluster, expected, cluster.lead(), joiner)


def test_a_host_that_falls_silent_is_noticed_within_two_minutes_and_taken_in_again(cluster, expected):
    leader, joiner = cluster.lead(), cluster.join()
    assert cluster.reached(EVERY + 2), cluster.logs()
    started = time.monotonic()
    cluster.second.host.cut_off()
    assert eventually(lambda: "another one from step" in cluster.first.log.read_text(), 120), cluster.logs()
    print(f"noticed after {time.monotonic() - started:.0f} s")
    cluster.second.host.reconnect()
    assert_done(cluster, expected, leader, joiner)


@pytest.mark.parametrize("told", ["first", "second"])
def test_sigterm_to_either_host_is_the_preemption_of_both(cluster, told):
    leader, joiner = cluster.lead(), cluster.join()
    assert cluster.reached(EVERY + 2), cluster.logs()
    {"first": leader, "second": joiner}[told].send_signal(signal.SIGTERM)
    assert leader.wait(timeout=60) == ExitCode.FAILED, cluster.logs()
    assert joiner.wait(timeout=60) == ExitCode.PREEMPTED, cluster.logs()
    result = cluster.result()
    assert result.status is JobStatus.PREEMPTED
    assert 0 < result.steps_done < STEPS
    assert (cluster.job_dir.parent / "out" / "checkpoints" / f"step-{result.steps_done}").is_dir()
