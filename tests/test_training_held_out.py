import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import AutoModelForCausalLM

from training import held_out
from training.precision import choose_precision
from training.train import train
from tuneline.contracts.artifacts import Adapter, HeldOutPoint
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import TrainingSpec

STEPS = 12
EVERY = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", optimizer_steps=STEPS)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


def run(folder: Path, inputs, report=lambda _: None, **training):
    adapter = {"dropout": 0.1}  # draws random numbers: a measurement that draws some too would change the weights
    job = make_job("train", folder, inputs, training={"learning_rate": 2e-2, **training}, adapter=adapter)
    return train(job, report), job.out_dir


def tensors(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / Adapter.WEIGHTS / "adapter_model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def held_out_losses(out_dir: Path) -> dict[int, float]:
    lines = map(json.loads, (out_dir / Adapter.METRICS).read_text().splitlines())
    return {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("unmeasured"), inputs)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("measured"), inputs, held_out_loss_every_optimizer_steps=EVERY)


def test_measuring_changes_no_bit_of_the_weights(unmeasured, measured):
    assert unmeasured[0].held_out is None
    assert same_bits(unmeasured[1], measured[1])


def test_the_loss_is_measured_every_so_many_steps_and_at_the_end(measured):
    adapter, out_dir = measured
    losses = held_out_losses(out_dir)
    assert list(losses) == [3, 6, 9, 12]
    assert adapter.held_out.last == HeldOutPoint(step=12, loss=losses[12])
    assert adapter.held_out.weights_of_step == 12
    assert not adapter.held_out.stopped_early


def test_the_loss_is_that_of_the_learned_tokens_alone_whatever_the_padding(inputs):
    model = AutoModelForCausalLM.from_pretrained(inputs["base"], dtype=torch.float32)
    batches = held_out.read_batches(inputs["prepared"])
    assert sum(len(batch.input_ids) for batch in batches) == 24
    losses = []
    for batch in batches:
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            length = int(mask.sum())
            scores = torch.log_softmax(model(ids[None, :length]).logits[0, :-1].detach(), dim=-1)
            learned = labels[1:length] != IGNORED_LABEL
            losses += (-scores[learned].gather(1, labels[1:length][learned][:, None])).flatten().tolist()
    precision = choose_precision("float32", "cpu", fast_bfloat16=False)
    assert held_out.mean_loss(model, batches, precision) == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    halves = [held_out._nll(model, batch) for batch in batches]
    assert sum(int(half[1]) for half in halves) == len(losses)


def test_the_best_weights_are_handed_on_and_the_rest_of_the_training_is_not(tmp_path, inputs, unmeasured, monkeypatch):
    falls_then_rises = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr(held_out, "mean_loss", lambda *_: next(falls_then_rises))
    asked = {"held_out_loss_every_optimizer_steps": EVERY, "weights": "best", "keep_checkpoints": 1}
    adapter, out_dir = run(tmp_path / "best", inputs, **asked)
    assert adapter.held_out.best == HeldOutPoint(step=6, loss=1.0)
    assert (adapter.held_out.weights_of_step, adapter.optimizer_steps) == (6, 12)
    assert not same_bits(out_dir, unmeasured[1])
    # Preempted at step 6, the same training leaves the weights of that step in its checkpoint.
    stopped = tmp_path / "stopped"

    def stop(event: ProgressEvent) -> None:
        if event.done == 5 and event.metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobInterrupted):
        run(stopped, inputs, stop)
    kept = load_file(stopped / "checkpoints" / "step-6" / "adapter_model.safetensors")
    found = tensors(out_dir)
    assert kept.keys() == found.keys()
    assert [name for name in kept if not torch.equal(kept[name], found[name])] == []


def test_patience_ends_a_training_that_no_longer_gets_better(tmp_path, inputs, monkeypatch):
    rising = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(held_out, "mean_loss", lambda *_: next(rising))
    asked = {"held_out_loss_every_optimizer_steps": EVERY, "early_stopping_patience": 2}
    adapter, out_dir = run(tmp_path / "out", inputs, **asked)
    assert adapter.optimizer_steps == 9
    assert adapter.held_out.stopped_early
    assert list(held_out_losses(out_dir)) == [3, 6, 9]


def test_what_was_measured_survives_an_interruption(tmp_path, inputs, measured):
    def stop(event: ProgressEvent) -> None:
        if event.done == 7 and event.metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    asked = {"held_out_loss_every_optimizer_steps": EVERY}
    with pytest.raises(JobInterrupted) as stopped:
        run(tmp_path / "out", inputs, stop, **asked)
    assert (stopped.value.result.status, stopped.value.result.steps_done) == (JobStatus.PREEMPTED, 8)
    adapter, out_dir = run(tmp_path / "out", inputs, **asked)
    assert adapter.resumed_from_step == 8
    assert held_out_losses(out_dir) == held_out_losses(measured[1])
    assert same_bits(out_dir, measured[1])


@pytest.mark.parametrize(
    ("losses", "patience", "exhausted"),
    [
        ([3, 2, 1], 1, False),
        ([1, 2], 1, True),
        ([1, 2], 2, False),
        ([1, 2, 1], 2, True),
        ([], 1, False),
        ([1, 9], None, False),
    ],
)
def test_patience_counts_the_measurements_since_the_best(losses, patience, exhausted):
    points = [HeldOutPoint(step=step, loss=loss) for step, loss in enumerate(losses)]
    assert held_out.is_exhausted(points, patience) is exhausted


def test_of_equal_losses_the_earliest_is_the_best():
    points = [HeldOutPoint(step=step, loss=loss) for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0))]
    assert held_out.best(points) == points[1]


@pytest.mark.parametrize("key", ["early_stopping_patience", "weights"])
def test_what_needs_the_held_out_loss_is_refused_without_it(key):
    value = {"early_stopping_patience": 2, "weights": "best"}[key]
    with pytest.raises(ValueError, match="held_out_loss_every_optimizer_steps"):
        TrainingSpec.model_validate({key: value})
