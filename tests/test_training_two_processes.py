"""Two processes on one machine train what one trains, sharded or not, and survive what happens to either of them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from processes import ROOT, TAG, describe, eventually, kill_all, program_environment, tagged
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from tiny_preferences import make_preferences

from training import checkpoints
from training.base_model import load_base
from training.precision import Precision
from training.train import train
from tuneline.contracts.artifacts import Adapter
from tuneline.contracts.jobs import JOB, PROGRESS, RESULT, JobResult, JobStatus

EVERY = 5
ENDED_SECONDS = 60


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {dtype: make_tiny_base(root / dtype, dtype=dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, bases) -> Path:
    return make_prepared(tmp_path_factory.mktemp("prepared"), bases["float32"])


class Training:
    """A job in a folder, done by two processes or by this one."""

    def __init__(self, folder: Path, bases, prepared: Path, processes: int = 2, steps: int = 12, **sections):
        dtype = sections.setdefault("model", {}).setdefault("dtype", "float32")
        plan = make_plan(folder / "plan", optimizer_steps=steps, micro_batch_rows=8 // processes)
        training = {"checkpoint_every_optimizer_steps": EVERY, **sections.pop("training", {})}
        inputs = {"base": bases[dtype], "prepared": prepared, "plan": plan}
        self.job = make_job("train", folder / "out", inputs, training=training, budget={"gpus": processes}, **sections)
        self.folder = folder / "job"
        self.folder.mkdir()
        (self.folder / JOB).write_text(self.job.model_dump_json())

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the processes; whatever is left of them in the end is killed."""
        environment = program_environment()
        self.tag = environment[TAG]
        for stale in (RESULT, PROGRESS):
            (self.folder / stale).unlink(missing_ok=True)
        with (self.folder / "output.log").open("ab") as log:
            command = [sys.executable, "-m", "training", str(self.folder)]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            kill_all(self.tag)
            process.wait()

    def finish(self) -> dict[str, torch.Tensor]:
        with self.started() as process:
            process.wait(timeout=240)
        assert self.result().status is JobStatus.COMPLETED, self.log()
        return self.weights()

    def result(self) -> JobResult:
        return JobResult.model_validate_json((self.folder / RESULT).read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        (path,) = (self.job.out_dir / Adapter.WEIGHTS).glob("*.safetensors")
        return load_file(path)

    def log(self) -> str:
        return (self.folder / "output.log").read_text()[-4000:]

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            progress = self.folder / PROGRESS
            lines = progress.read_text().splitlines(keepends=True) if progress.exists() else []
            return any(json.loads(line)["done"] >= step for line in lines if line.endswith("\n"))

        assert eventually(lambda: reached() or (self.folder / RESULT).exists(), 240), self.log()
        assert reached(), self.log()

    def victim(self, who: str) -> psutil.Process:
        found = {process.environ().get("RANK", "launcher"): process for process in tagged(self.tag)}
        return found[who]

    def orphans(self) -> str:
        return describe(tagged(self.tag))


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To a twentieth of a step's length of 2e-3: sums over two ranks are rounded in another order."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, bases, prepared) -> dict[str, torch.Tensor]:
    training = Training(tmp_path_factory.mktemp("alone"), bases, prepared, processes=1)
    train(training.job, lambda _: None)
    return training.weights()


def test_two_processes_train_what_one_trains(tmp_path, bases, prepared, alone):
    assert_close(Training(tmp_path, bases, prepared).finish(), alone)


@pytest.mark.long
def test_two_processes_that_shard_the_weights_train_what_one_trains(tmp_path, bases, prepared, alone):
    training = Training(tmp_path, bases, prepared, training={"fsdp": True})
    assert_close(training.finish(), alone)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "dtype"), [("full", "float32"), ("qlora", "float32"), ("qlora", "bfloat16"), ("lora", "bfloat16")]
)
def test_sharding_changes_no_weight_of_any_method(tmp_path, bases, prepared, method, dtype):
    sections = {"adapter": {"method": method}, "model": {"dtype": dtype}}
    (tmp_path / "whole").mkdir()
    (tmp_path / "sharded").mkdir()
    whole = Training(tmp_path / "whole", bases, prepared, **sections).finish()
    found = Training(tmp_path / "sharded", bases, prepared, training={"fsdp": True}, **sections).finish()
    if dtype == "float32":
        assert_close(found, whole)
        return
    # In bfloat16 both round, at different places: what differs is far less than what was learned.
    assert found.keys() == whole.keys()
    ups = [name for name in whole if "lora_B" in name]  # start at 0
    apart = torch.cat([(found[name] - whole[name]).flatten() for name in ups]).norm()
    assert apart < 0.1 * torch.cat([whole[name].flatten() for name in ups]).norm()


@pytest.mark.long
def test_sharding_changes_no_weight_of_a_training_beside_its_reference(tmp_path, bases):
    pairs = make_preferences(tmp_path / "pairs", bases["float32"], "preference")
    sections = {"adapter": {"method": "full"}}
    (tmp_path / "whole").mkdir()
    (tmp_path / "sharded").mkdir()
    whole = Training(tmp_path / "whole", bases, pairs, **sections).finish()
    assert_close(Training(tmp_path / "sharded", bases, pairs, training={"fsdp": True}, **sections).finish(), whole)


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
def test_nf4_that_is_stored_to_be_sharded_stands_for_the_same_numbers(bases, frozen):
    precision = Precision("cpu", torch.bfloat16, frozen=frozen, autocast=None)
    inputs = torch.arange(20).reshape(1, -1)
    whole, sharded = (load_base(bases["bfloat16"], "qlora", precision, "sdpa", sharded=sharded) for sharded in (0, 1))
    assert torch.equal(sharded(inputs).logits, whole(inputs).logits)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, bases, prepared) -> dict[bool, dict[str, torch.Tensor]]:
    """Weights after 40 steps, by whether they were sharded."""
    return {
        fsdp: Training(tmp_path_factory.mktemp("undisturbed"), bases, prepared, **forty_steps(fsdp)).finish()
        for fsdp in (False, True)
    }


def forty_steps(fsdp: bool):
    return {"steps": 40, "training": {"fsdp": fsdp}, "adapter": {"dropout": 0.1}}


@pytest.mark.long
@pytest.mark.parametrize(("who", "fsdp"), [("launcher", False), ("1", False), ("1", True)])
def test_sigterm_to_any_process_preempts_all_at_one_step(tmp_path, bases, prepared, undisturbed, who, fsdp):
    training = Training(tmp_path, bases, prepared, **forty_steps(fsdp))
    with training.started() as process:
        training.wait_for_step(EVERY + 2)
        training.victim(who).send_signal(signal.SIGTERM)
        process.wait(timeout=ENDED_SECONDS)
        assert training.orphans() == ""
    result = training.result()
    assert (result.status, result.steps_planned) == (JobStatus.PREEMPTED, 40), training.log()
    newest = checkpoints.newest_whole(training.job.out_dir / checkpoints.FOLDER)
    assert newest is not None and newest[1].step == result.steps_done > EVERY
    assert same_bits(training.finish(), undisturbed[fsdp])


@pytest.mark.long
@pytest.mark.parametrize(("who", "fsdp"), [("launcher", False), ("1", False), ("0", True)])
def test_a_process_that_is_killed_takes_all_with_it_and_costs_no_bit(tmp_path, bases, prepared, undisturbed, who, fsdp):
    training = Training(tmp_path, bases, prepared, **forty_steps(fsdp))
    with training.started() as process:
        training.wait_for_step(EVERY + 2)
        training.victim(who).kill()
        process.wait(timeout=ENDED_SECONDS)
        assert eventually(lambda: training.orphans() == "", ENDED_SECONDS), training.orphans()
    assert not (training.job.out_dir / Adapter.WEIGHTS).exists()
    assert same_bits(training.finish(), undisturbed[fsdp])
