import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT, eventually
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import TrainerControl

from training import checkpoints
from training.callbacks import Progress
from training.train import train
from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, Job, JobInterrupted, JobStatus, ProgressEvent

STEPS = 30
EVERY = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Sums over two threads are rounded in another order than over one: children and this process use one.
    before, granted = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(granted)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", optimizer_steps=STEPS, micro_batch_rows=4, accumulation_steps=2)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


def job_in(folder: Path, inputs, method: str = "lora") -> Job:
    # Dropout draws from torch's generator: equal bits need its state restored, too.
    training = {"checkpoint_every_optimizer_steps": EVERY}
    adapter = {"method": method} if method == "full" else {"method": method, "dropout": 0.1}
    return make_job("train", folder, inputs, adapter=adapter, training=training)


def ignore(_: ProgressEvent) -> None:
    pass


def sigterm_at(step: int):
    def report(event: ProgressEvent) -> None:
        if event.done == step and event.metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    (path,) = (out_dir / Adapter.WEIGHTS).glob("*.safetensors")
    return load_file(path)


def logged_steps(out_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out_dir / Adapter.METRICS).read_text().splitlines()]


def assert_same_bits(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, inputs):
    job = job_in(tmp_path_factory.mktemp("uninterrupted"), inputs)
    return train(job, ignore), job.out_dir


@pytest.fixture(scope="module")
def preempted(tmp_path_factory, inputs):
    """A work folder that SIGTERM left at step 13, with whole checkpoints at 10 and 13."""
    job = job_in(tmp_path_factory.mktemp("preempted"), inputs)
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(JobInterrupted) as stop:
        train(job, sigterm_at(12))
    assert signal.getsignal(signal.SIGTERM) is former
    return job.out_dir, stop.value.result


def resume(folder: Path, preempted, inputs):
    shutil.copytree(preempted[0], folder)
    job = job_in(folder, inputs)
    return train(job, ignore), job.out_dir


def test_sigterm_saves_at_the_next_step_and_ends_as_preempted(preempted):
    out_dir, result = preempted
    assert (result.status, result.steps_done, result.steps_planned) == (JobStatus.PREEMPTED, 13, STEPS)
    newest = checkpoints.newest_whole(out_dir / checkpoints.FOLDER)
    assert newest is not None and newest[1].step == 13
    assert not (out_dir / Adapter.WEIGHTS).exists()


def test_a_preempted_training_resumes_to_the_bits_of_an_uninterrupted_one(tmp_path, preempted, inputs, uninterrupted):
    adapter, out_dir = resume(tmp_path / "out", preempted, inputs)
    assert adapter.resumed_from_step == 13
    assert_same_bits(out_dir, uninterrupted[1])
    assert adapter.weights_sha256 == uninterrupted[0].weights_sha256
    assert logged_steps(out_dir) == list(range(1, STEPS + 1))
    assert adapter.train_tokens == uninterrupted[0].train_tokens


def test_a_torn_checkpoint_is_passed_over_for_the_newest_whole_one(tmp_path, preempted, inputs, uninterrupted, capsys):
    shutil.copytree(preempted[0], tmp_path / "out")
    torn = tmp_path / "out" / checkpoints.FOLDER / "step-13" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-1])
    adapter = train(job_in(tmp_path / "out", inputs), ignore)
    assert "step-13 is torn" in capsys.readouterr().out
    assert adapter.resumed_from_step == 10
    assert logged_steps(tmp_path / "out") == list(range(1, STEPS + 1))
    assert_same_bits(tmp_path / "out", uninterrupted[1])


@pytest.mark.parametrize("damage", ["no manifest", "flipped bit", "missing file"])
def test_no_torn_checkpoint_is_ever_used(tmp_path, preempted, damage):
    shutil.copytree(preempted[0] / checkpoints.FOLDER, tmp_path / "saved")
    newest = tmp_path / "saved" / "step-13"
    weight_file = newest / "adapter_model.safetensors"
    match damage:
        case "no manifest":
            (newest / checkpoints.MANIFEST).unlink()
        case "flipped bit":
            content = bytearray(weight_file.read_bytes())
            content[-1] ^= 1
            weight_file.write_bytes(content)
        case "missing file":
            weight_file.unlink()
    found = checkpoints.newest_whole(tmp_path / "saved")
    assert found is not None and found[0].name == "step-10"
    assert not newest.exists()


def test_the_loss_is_looked_at_before_every_save():
    progress = Progress(ignore, Path("unused"), (0,), 0.0)
    control = TrainerControl(should_save=True)
    progress.on_step_end(None, None, control)
    assert control.should_log  # transformers logs, and `on_log` raises, before it saves


def test_no_more_checkpoints_are_kept_than_asked_for(preempted):
    names = sorted(path.name for path in (preempted[0] / checkpoints.FOLDER).glob("step-*"))
    assert names == ["step-10", "step-13"]


def test_a_full_training_resumes_to_the_same_bits(tmp_path, inputs):
    plan = make_plan(tmp_path / "plan", optimizer_steps=8)
    inputs = {**inputs, "plan": plan}
    straight = job_in(tmp_path / "straight", inputs, "full")
    train(straight, ignore)
    stopped = job_in(tmp_path / "stopped", inputs, "full")
    with pytest.raises(JobInterrupted):
        train(stopped, sigterm_at(5))
    assert train(stopped, ignore).resumed_from_step == 6
    assert_same_bits(stopped.out_dir, straight.out_dir)


def test_sigterm_while_loading_ends_as_preempted_at_once(tmp_path, inputs):
    def report(event: ProgressEvent) -> None:
        assert event.done == 0, "a step was done after SIGTERM"
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobInterrupted) as stop:
        train(job_in(tmp_path / "out", inputs), report)
    assert (stop.value.result.status, stop.value.result.steps_done) == (JobStatus.PREEMPTED, 0)


def test_a_killed_process_is_resumed_to_the_bits_of_an_uninterrupted_one(tmp_path, inputs, uninterrupted):
    job = job_in(tmp_path / "out", inputs)
    job_dir = tmp_path / "job"
    job_dir.mkdir()
    (job_dir / JOB).write_text(job.model_dump_json())

    def last_step() -> int:
        progress = job_dir / PROGRESS
        lines = progress.read_text().splitlines(keepends=True) if progress.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return json.loads(whole[-1])["done"] if whole else 0

    command = [sys.executable, "-m", "training", str(job_dir)]
    with (job_dir / "output.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            assert eventually(lambda: last_step() > EVERY or child.poll() is not None, seconds=300)
        finally:
            child.kill()
            child.wait()
    assert child.returncode == -signal.SIGKILL, (job_dir / "output.log").read_text()
    assert not (job_dir / RESULT).exists()
    adapter = train(job, ignore)
    assert EVERY <= adapter.resumed_from_step < STEPS
    assert_same_bits(job.out_dir, uninterrupted[1])
    assert logged_steps(job.out_dir) == list(range(1, STEPS + 1))


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 8 MiB, or skip where that is not allowed."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_disk_that_fills_up_harms_no_checkpoint_and_the_training_goes_on_when_there_is_room(
    small_disk, inputs, uninterrupted
):
    filler = small_disk / "filler"

    def fill(event: ProgressEvent) -> None:
        if event.done == EVERY + 1 and event.metrics:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))
            keep_some = filler.stat().st_size - 64 * 1024  # for the metrics of the steps to the next checkpoint
            os.truncate(filler, keep_some)

    job = job_in(small_disk / "out", inputs)
    with pytest.raises(UserError, match="the disk is full") as full:
        train(job, fill)
    assert full.value.problems[0].where == str(job.out_dir)
    filler.unlink()
    assert train(job, ignore).resumed_from_step == EVERY
    assert_same_bits(job.out_dir, uninterrupted[1])
    assert logged_steps(job.out_dir) == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("adapter", "rank", 8), ("training", "learning_rate", 1e-3), ("training", "seed", 5)],
)
def test_a_checkpoint_of_another_training_is_refused_and_what_changed_is_said(
    tmp_path, preempted, inputs, section, key, value
):
    shutil.copytree(preempted[0], tmp_path / "out")
    job = job_in(tmp_path / "out", inputs)
    was = getattr(getattr(job.spec, section), key)
    changed = getattr(job.spec, section).model_copy(update={key: value})
    other = job.model_copy(update={"spec": job.spec.model_copy(update={section: changed})})
    with pytest.raises(UserError) as refused:
        train(other, ignore)
    assert f"{section}.{key} was {was}, is {value}" in refused.value.problems[0].what
    assert "step 13" in refused.value.problems[0].what


def test_how_a_step_is_cut_up_and_logged_is_no_other_training(tmp_path, preempted, inputs):
    shutil.copytree(preempted[0], tmp_path / "out")
    plan = make_plan(tmp_path / "plan", optimizer_steps=STEPS, micro_batch_rows=2, accumulation_steps=4)
    adapter = train(job_in(tmp_path / "out", {**inputs, "plan": plan}), ignore)
    assert adapter.resumed_from_step == 13


def test_a_checkpoint_that_was_never_finished_is_deleted_and_not_resumed_from(tmp_path, preempted, inputs, capsys):
    shutil.copytree(preempted[0], tmp_path / "out")
    folder = tmp_path / "out" / checkpoints.FOLDER
    (folder / "step-13").rename(folder / "checkpoint-13")
    found = checkpoints.newest_whole(folder)
    assert found is not None and found[1].step == 10
    assert "checkpoint-13 was never finished" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step-10"]


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path):
    for step in (5, 10, 15, 20):
        (tmp_path / f"step-{step}").mkdir()
    checkpoints.prune(tmp_path, keep=1, best_step=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-20"]
