"""`tuneline node` takes part in what a flow on another node trains, and ends with it."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from processes import ROOT, TAG, describe, eventually, kill_all, program_environment, tagged
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base

from flows.launch import run_child
from tuneline.contracts.errors import ExitCode
from tuneline.contracts.jobs import Job, JobStatus, ProgressEvent
from tuneline.contracts.ports import free_port


@pytest.fixture
def rendezvous(monkeypatch) -> str:
    """Make this process the first of two nodes; the other is on the same machine."""
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("TUNELINE_NODES", "2")
    monkeypatch.setenv("TUNELINE_RENDEZVOUS", address)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return address


@pytest.fixture
def node(rendezvous, tmp_path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The other node, and the tag of its processes."""
    environment = program_environment(TUNELINE_RENDEZVOUS=rendezvous)
    with (tmp_path / "node.log").open("wb") as log:
        command = [sys.executable, "-m", "tuneline.cli", "node"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield process, environment[TAG]
    finally:
        kill_all(environment[TAG])
        process.wait()


@pytest.fixture
def job(tmp_path) -> Job:
    base = make_tiny_base(tmp_path / "base")
    plan = make_plan(tmp_path / "plan", optimizer_steps=40, micro_batch_rows=4)
    inputs = {"base": base, "prepared": make_prepared(tmp_path / "prepared", base), "plan": plan}
    return make_job("train", tmp_path / "out", inputs, budget={"gpus": 2})


def test_a_node_that_waits_ends_well_when_it_is_told_to(node, tmp_path):
    process, tag = node
    assert eventually(lambda: "waiting for a training" in (tmp_path / "node.log").read_text(), 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == ExitCode.DONE
    assert describe(tagged(tag)) == ""


@pytest.mark.long
def test_a_flow_and_a_node_train_together_and_end_together(node, job, tmp_path):
    process, tag = node
    result = run_child("training", job, tmp_path / "job", lambda _: None)
    assert result.status is JobStatus.COMPLETED, result.detail
    assert process.wait(timeout=60) == ExitCode.DONE, (tmp_path / "node.log").read_text()
    assert describe(tagged(tag)) == ""


@pytest.mark.long
def test_a_cancelled_flow_is_the_preemption_of_the_node(node, job, tmp_path):
    process, tag = node

    class Cancelled(BaseException):
        pass

    def cancel(event: ProgressEvent) -> None:
        if event.metrics:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_child("training", job, tmp_path / "job", cancel)
    assert process.wait(timeout=60) == ExitCode.PREEMPTED, (tmp_path / "node.log").read_text()
    assert describe(tagged(tag)) == ""
