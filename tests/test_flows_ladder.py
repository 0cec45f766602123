"""A training that runs out of memory goes on from its last checkpoint, a rung further, to the same weights."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from processes import PROGRAMS, ROOT
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import Trainer

from flows import publishing
from flows.attempts import Training, train_in_memory
from flows.child_result import read_result
from flows.guardian import Ending
from flows.launch import raise_for, run_child
from flows.making import run_stage_child
from flows.oom_kills import oom_kills
from training.train import train
from tuneline.contracts.artifacts import Adapter, MemoryRung, Plan, PreparedData
from tuneline.contracts.errors import StageFailed
from tuneline.contracts.jobs import OUTPUT, JobInterrupted, JobResult, JobStatus, ProgressEvent, is_out_of_memory
from tuneline.contracts.ladder import Ladder, read_ladder, write_ladder
from tuneline.contracts.store import ArtifactStore, Stored, read_record
from tuneline.registry.tracking import RunStatus, start_run

pytest_plugins = ["registry_fixtures"]
STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", optimizer_steps=STEPS, micro_batch_rows=8, accumulation_steps=1)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


@pytest.fixture
def rows_read(monkeypatch):
    """The rows of each optimizer step, in order, by folder and step; a step done again replaces what it read before."""
    read = defaultdict(dict)
    training_step = Trainer.training_step
    last = {}

    def watched_step(self, model, inputs, items=None):
        if self.optimizer.param_groups[0]["lr"] > 0:  # not a preflight's
            folder, step = Path(self.args.output_dir).parent.parent.name, self.state.global_step
            if last.get(folder) != (id(self), step):
                read[folder][step] = []
            last[folder] = (id(self), step)
            padding = self.processing_class.pad_token_id
            read[folder][step] += [[token for token in row if token != padding] for row in inputs["input_ids"].tolist()]
        return training_step(self, model, inputs, items)

    monkeypatch.setattr(Trainer, "training_step", watched_step)
    return read


def job_in(folder: Path, inputs, **options: str):
    training = {"checkpoint_every_optimizer_steps": 5, "log_every_optimizer_steps": 1, "warmup_share": 0.0}
    job = make_job("train", folder / "out", inputs, training=training, adapter={"rank": 4})
    return job.model_copy(update={"options": options})


def what_decides(job) -> Training:
    plan, data = read_record(job.inputs["plan"], Plan), read_record(job.inputs["prepared"], PreparedData)
    return Training(job.spec, plan, data)


def train_here(job, told=None):
    """Train in this process, on the ladder."""

    def attempt(reached):
        def report(event: ProgressEvent) -> None:
            reached(event)
            if told is not None:
                told(event)

        try:
            return train(job, report)
        except JobInterrupted as stop:
            raise StageFailed("train", stop.result.status.value, stop.result.detail) from stop

    heard: list[Ladder] = []
    return train_in_memory(what_decides(job), job.out_dir, attempt, heard.append), heard


def run_out(monkeypatch, *occasions: tuple[int, int, bool]) -> None:
    """Raise what CUDA raises, in training steps at (step, rows in the micro-batch, with checkpointing)."""
    waiting = list(occasions)
    training_step = Trainer.training_step

    def hungry_step(self, model, inputs, items=None):
        now = (self.state.global_step, len(inputs["input_ids"]), bool(self.args.gradient_checkpointing))
        if waiting and now == waiting[0]:
            waiting.pop(0)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return training_step(self, model, inputs, items)

    monkeypatch.setattr(Trainer, "training_step", hungry_step)


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / Adapter.WEIGHTS / "adapter_model.safetensors")


def assert_same_but_for_accumulation(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    moved = max(tensor.abs().max().item() for name, tensor in theirs.items() if "lora_B" in name)  # they start at 0
    furthest = max((ours[name] - tensor).abs().max().item() for name, tensor in theirs.items())
    assert furthest < 1e-4 * moved  # 5e-6 measured


def logged_steps(out_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out_dir / Adapter.METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, inputs):
    job = job_in(tmp_path_factory.mktemp("whole"), inputs)
    train(job, lambda _: None)
    return job.out_dir


def test_memory_that_runs_out_four_times_leaves_weights_row_order_and_metrics_as_they_would_have_been(
    tmp_path, inputs, monkeypatch, rows_read
):
    whole = job_in(tmp_path / "whole", inputs)
    train(whole, lambda _: None)
    # In the preflight of 8 rows, at step 3 before any checkpoint, at step 7 after one, and with single rows at step 11.
    run_out(monkeypatch, (0, 8, False), (3, 4, False), (7, 2, False), (11, 1, False))
    job = job_in(tmp_path / "starved", inputs)
    adapter, heard = train_here(job)
    assert [(rung.action, rung.micro_batch_divisor, rung.after_step) for rung in adapter.rungs] == [
        ("half the micro-batch", 2, 0),
        ("half the micro-batch", 4, 3),
        ("half the micro-batch", 8, 7),
        ("activation checkpointing", 8, 11),
    ]
    assert all("CUDA out of memory. Tried to allocate 2.00 GiB" in rung.cause for rung in adapter.rungs)
    assert [len(ladder.rungs) for ladder in heard] == [1, 2, 3, 4]
    assert adapter.resumed_from_step == 10
    assert_same_but_for_accumulation(job.out_dir, whole.out_dir)
    assert logged_steps(job.out_dir) == list(range(1, STEPS + 1))
    assert rows_read["starved"] == rows_read["whole"]
    assert sorted(rows_read["whole"]) == list(range(STEPS))
    assert {len(rows) for rows in rows_read["whole"].values()} == {8}


def test_a_run_that_starts_again_after_any_kill_stays_on_its_rung(tmp_path, inputs, monkeypatch, uninterrupted):
    rung = MemoryRung(
        action="half the micro-batch",
        micro_batch_divisor=4,
        activation_checkpointing=False,
        activation_offloading=False,
        after_step=3,
        cause="an earlier attempt",
    )
    job = job_in(tmp_path, inputs)
    write_ladder(job.out_dir, Ladder(rungs=(rung,)))
    run_out(monkeypatch, (0, 8, False), (0, 4, False))  # would strike if it began anew
    adapter, heard = train_here(job)
    assert (adapter.rungs, heard) == ((rung,), [])
    assert_same_but_for_accumulation(job.out_dir, uninterrupted)


def test_an_allocation_that_really_fails_in_the_child_is_answered_with_a_rung(
    tmp_path, inputs, monkeypatch, uninterrupted
):
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TUNELINE_TERMINAL", "1")  # Prefect stays out of it
    job = job_in(tmp_path, inputs, starve="4@7")
    store = ArtifactStore(tmp_path / "store")

    def attempt(reached):
        return run_stage_child("starved_training", job, Adapter, store, reached)

    adapter = train_in_memory(what_decides(job), job.out_dir, attempt, lambda _: None)
    (rung,) = adapter.rungs
    assert (rung.micro_batch_divisor, rung.after_step) == (2, 7)
    assert "can't allocate memory" in rung.cause
    assert adapter.resumed_from_step == 5
    assert_same_but_for_accumulation(job.out_dir, uninterrupted)


@pytest.mark.long
def test_memory_that_runs_out_in_one_of_two_processes_is_answered_with_a_rung_for_both(
    tmp_path, inputs, monkeypatch, uninterrupted
):
    monkeypatch.setenv("PYTHONPATH", str(PROGRAMS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    halves = {**inputs, "plan": make_plan(tmp_path / "plan", micro_batch_rows=4)}  # 4 rows in each process
    job = job_in(tmp_path, halves, starve="2@7", rank="1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]

    def attempt(reached):
        result = run_child("starved_training", job, tmp_path / "job", reached, launcher=torchrun)
        raise_for(result, "train", tmp_path / "job" / OUTPUT)
        return Adapter.model_validate(result.artifact)

    adapter = train_in_memory(what_decides(job), job.out_dir, attempt, lambda _: None)
    (rung,) = adapter.rungs
    assert rung.micro_batch_divisor == 2
    assert "can't allocate memory" in rung.cause
    assert adapter.resumed_from_step == 5
    assert adapter.preflight.longest_steps == 3
    assert_same_but_for_accumulation(job.out_dir, uninterrupted)


def always_out_of_memory(reached):
    reached(ProgressEvent(done=0, planned=STEPS, unit="steps", note="loading"))
    reached(ProgressEvent(done=2, planned=STEPS, unit="steps", note="preflight"))
    raise StageFailed("train", JobStatus.OUT_OF_MEMORY, "MemoryError", "output.log")


def test_when_the_ladder_ends_the_run_fails_with_what_was_tried_and_what_to_change(tmp_path, inputs):
    job = job_in(tmp_path, inputs)
    with pytest.raises(StageFailed) as failed:
        train_in_memory(what_decides(job), job.out_dir, always_out_of_memory, lambda _: None)
    assert len(read_ladder(job.out_dir).rungs) == 4  # 4, 2 and 1 rows, then checkpointing; a CPU cannot offload
    assert failed.value.status == JobStatus.OUT_OF_MEMORY
    assert failed.value.exit_code == 1
    assert "micro-batches of 8 rows x 1 (after step 2)" in failed.value.detail
    assert "micro-batches of 1 row x 8, activation checkpointing (after step 2)" in failed.value.detail
    assert "adapter.method to qlora" in failed.value.detail
    assert failed.value.log == "output.log"


def test_memory_that_runs_out_while_loading_is_not_answered_with_smaller_micro_batches(tmp_path, inputs):
    def attempt(reached):
        reached(ProgressEvent(done=0, planned=STEPS, unit="steps", note="loading"))
        raise StageFailed("train", JobStatus.OUT_OF_MEMORY, "MemoryError")

    job = job_in(tmp_path, inputs)
    with pytest.raises(StageFailed, match="no smaller micro-batch helps"):
        train_in_memory(what_decides(job), job.out_dir, attempt, lambda _: None)
    assert read_ladder(job.out_dir) == Ladder()


def test_rungs_and_preflight_are_on_the_mlflow_run(tmp_path, inputs, monkeypatch, local_registry):
    run_out(monkeypatch, (0, 8, False), (3, 4, False))
    job = job_in(tmp_path, inputs)
    adapter, _ = train_here(job)
    live = start_run(local_registry, "e", "starved", "f00d", {})
    stored = Stored("train", "f", job.out_dir, adapter, found=False, seconds=1.0)
    plan = Stored("plan", "p", inputs["plan"], read_record(inputs["plan"], Plan), found=False, seconds=1.0)
    publishing.log_training(live, stored, plan)
    live.finish(RunStatus.FINISHED)
    data = local_registry.mlflow.get_run(live.run_id).data
    assert data.tags["tuneline.memory_rung.1"].startswith("half the micro-batch, after step 0: OutOfMemoryError")
    assert data.tags["tuneline.memory_rung.2"].startswith("half the micro-batch, after step 3: OutOfMemoryError")
    assert data.metrics["memory_rungs"] == 2
    assert data.metrics["preflight_tokens_per_second"] == adapter.preflight.tokens_per_second
    assert data.metrics["preflight_peak_memory_bytes"] == adapter.preflight.peak_memory_bytes
    assert data.metrics["seconds_left"] == 0


def test_every_other_failure_is_passed_on(tmp_path, inputs):
    def attempt(reached):
        raise StageFailed("train", JobStatus.DIVERGED, "NaN")

    with pytest.raises(StageFailed, match="diverged: NaN"):
        train_in_memory(what_decides(job_in(tmp_path, inputs)), tmp_path, attempt, lambda _: None)


def test_failed_allocations_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.events": "oom 4\noom_kill 3\n"}, 3),
        ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/memory.events": "oom_kill 2\n"}, 2),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
                "proc/vmstat": "oom_kill 9\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "0::/\n", "proc/vmstat": "pgfault 1\noom_kill 7\n"}, 7),
        ({}, 0),
    ],
)
def test_kills_for_want_of_memory_are_counted_where_the_kernel_counts_them(tmp_path, files, kills):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == kills


def test_a_kill_is_out_of_memory_only_when_the_kernel_has_counted_one(tmp_path):
    (tmp_path / "output.log").write_text("step 3\n")
    assert read_result(tmp_path, Ending(-9)).status is JobStatus.FAILED
    assert read_result(tmp_path, Ending(-9), oom_killed=True).status is JobStatus.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("of_rank_0", "status"),
    [
        ("failed", "out_of_memory"),  # its peer is gone
        ("preempted", "out_of_memory"),  # the launcher ended it
        (None, "out_of_memory"),  # SIGKILL, in a collective
        ("completed", "completed"),
        ("wrong_input", "wrong_input"),
    ],
)
def test_memory_that_runs_out_in_another_rank_is_told_from_its_result(tmp_path, of_rank_0, status):
    (tmp_path / "output.log").write_text("")
    starved = JobResult(status=JobStatus.OUT_OF_MEMORY, detail="rank 1")
    (tmp_path / "starved_rank.json").write_text(starved.model_dump_json())
    if of_rank_0 is not None:
        (tmp_path / "result.json").write_text(JobResult(status=JobStatus(of_rank_0)).model_dump_json())
    assert read_result(tmp_path, Ending(1)).status == status


GROUPS = Path("/sys/fs/cgroup/memory")
"""cgroup v1's memory controller; of v2 no process may join a group beside its siblings' without preparations."""


@pytest.mark.skipif(not os.access(GROUPS / "cgroup.procs", os.W_OK), reason="no memory cgroup can be made here")
def test_a_stage_that_the_kernel_kills_for_want_of_memory_ends_as_out_of_memory(tmp_path):
    group = GROUPS / f"tuneline-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        command = [sys.executable, str(PROGRAMS / "flow_in_little_memory.py"), str(group), str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PROGRAMS}"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    finally:
        group.rmdir()
    assert ended.stdout.startswith("out_of_memory: killed by the kernel's out-of-memory killer"), ended.stderr
