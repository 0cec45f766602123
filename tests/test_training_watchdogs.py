import json
import math
import random
import threading

import pytest
from safetensors.torch import load_file, save_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import TrainerControl, TrainerState

from training import watchdogs
from training.data import load_rows
from training.faults import device_watched, is_device_lost
from training.metrics import StepMetrics
from training.stall import LEAST_STALL_SECONDS, STALL_FACTOR, StallWatch
from training.train import train
from training.watchdogs import LASTING_STEPS, LEAST_STEPS, SUSPECTS, Noise, Watchdogs, stands_out
from tuneline.contracts.jobs import JobInterrupted, JobStatus


def rows_of_steps(after: int, to: int) -> list[str]:
    return [f"row {step}" for step in range(after + 1, to + 1)]


def watching(folder, *, stop=True, history=()) -> Watchdogs:
    return Watchdogs(folder, rows_of_steps, history, stop=stop)


def log(watch: Watchdogs, step: int, loss: float, norm: float = 1.0) -> None:
    state = TrainerState(global_step=step, max_steps=1000)
    watch.on_log(None, state, TrainerControl(), {"loss": loss, "grad_norm": norm})


def noisy_training(seed: int, steps: int = 1000) -> list[float]:
    """Losses of small batches as they fall from 1.6 to 0.02, with a hard batch of up to 0.9 nats now and then."""
    draw = random.Random(seed)
    calm = [1.6 * math.exp(-step / 150) + 0.02 for step in range(steps)]
    return [loss * draw.lognormvariate(0, 0.3) + (draw.random() * 0.9 if draw.random() < 0.05 else 0) for loss in calm]


@pytest.mark.parametrize("seed", range(10))
def test_the_noise_of_small_batches_stops_no_training(tmp_path, seed):
    watch = watching(tmp_path)
    draw = random.Random(seed)
    for step, loss in enumerate(noisy_training(seed), start=1):
        log(watch, step, loss, norm=draw.lognormvariate(0, 0.7))
    assert not (tmp_path / SUSPECTS).exists()


def test_one_bad_batch_is_passed_over_and_a_lasting_spike_ends_as_diverged_with_its_rows(tmp_path):
    watch = watching(tmp_path)
    losses = noisy_training(3)[:100]
    for step, loss in enumerate(losses, start=1):
        log(watch, step, 9.0 if step == 60 else loss)
    with pytest.raises(JobInterrupted) as stop:
        for step in range(101, 120):
            log(watch, step, 9.0)
    result = stop.value.result
    assert (result.status, result.steps_done) == (JobStatus.DIVERGED, 100 + LASTING_STEPS)
    assert "the loss stays at 9" in result.detail and str(tmp_path / SUSPECTS) in result.detail
    lines = [json.loads(line) for line in (tmp_path / SUSPECTS).read_text().splitlines()]
    assert [(line["step"], line["row_ids"]) for line in lines] == [(step, [f"row {step}"]) for step in (101, 102, 103)]


def test_an_exploding_gradient_norm_ends_as_diverged(tmp_path):
    watch = watching(tmp_path)
    with pytest.raises(JobInterrupted, match="gradient norm stays at 1e\\+03"):
        for step in range(1, 60):
            log(watch, step, 1.0, norm=1000.0 if step > 40 else 1.0 + step % 3 / 10)


def test_under_warn_a_spike_is_told_and_the_training_goes_on(tmp_path, capsys):
    watch = watching(tmp_path, stop=False)
    for step in range(1, 60):
        log(watch, step, 9.0 if step > 50 else 1.0)
    assert "training.watchdogs is `warn`: going on" in capsys.readouterr().out
    assert (tmp_path / SUSPECTS).exists()


@pytest.mark.parametrize("figures", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
@pytest.mark.parametrize("stop", [True, False])
def test_what_is_no_number_always_stops(tmp_path, figures, stop):
    watch = watching(tmp_path, stop=stop)
    log(watch, 10, 1.0)
    with pytest.raises(JobInterrupted) as end:
        log(watch, 20, *figures)
    assert end.value.result.status is JobStatus.DIVERGED
    assert "step 20" in end.value.result.detail


def test_a_resumed_training_knows_the_noise_of_the_steps_before(tmp_path):
    figures = {"learning_rate": 0, "tokens": 0, "tokens_per_second": 0, "seconds": 0, "seconds_left": 0}
    history = [
        StepMetrics(step=step, loss=1.0, grad_norm=1.0, peak_memory_bytes=0, **figures)
        for step in range(1, LEAST_STEPS + 1)
    ]
    watch = watching(tmp_path, history=history)
    with pytest.raises(JobInterrupted):
        for step in range(LEAST_STEPS + 1, LEAST_STEPS + 1 + LASTING_STEPS):
            log(watch, step, 9.0)


def test_nothing_stands_out_while_the_noise_is_unknown():
    assert not stands_out(1e9, [1.0] * (LEAST_STEPS - 1), 0)
    assert stands_out(1e9, [1.0] * LEAST_STEPS, 0)


def test_values_that_stand_out_do_not_become_the_noise():
    noise = Noise()
    for _ in range(50):
        noise.lasts(1.0, lambda median: median + 1)
    found = [noise.lasts(9.0, lambda median: median + 1) for _ in range(watchdogs.WINDOW_STEPS)]
    assert found == [False] * (LASTING_STEPS - 1) + [True] * (watchdogs.WINDOW_STEPS - LASTING_STEPS + 1)


def test_the_rows_of_a_diverged_step_are_those_that_were_read(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    inputs = {"prepared": make_prepared(tmp_path / "prepared", base), "plan": make_plan(tmp_path / "plan")}
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobInterrupted):
        train(make_job("train", tmp_path / "out", {**inputs, "base": base}), lambda _: None)
    (line,) = map(json.loads, (tmp_path / "out" / SUSPECTS).read_text().splitlines())
    rows = load_rows(inputs["prepared"], 12, 8, 17)
    assert line["row_ids"] == rows.row_ids(0, 1)
    assert len(set(line["row_ids"])) == 8
    by_name = {row["row_id"]: row["input_ids"] for row in _stored(inputs["prepared"])}
    assert [by_name[name] for name in line["row_ids"]] == rows.dataset[:8]["input_ids"]


def _stored(prepared):
    from datasets import Dataset

    return Dataset.from_file(str(prepared / "train.arrow"))


def test_a_step_that_does_not_end_is_told_with_the_median(monkeypatch):
    told, ended = [], threading.Event()

    def end(why: str) -> None:
        told.append(why)
        ended.set()

    watch = StallWatch(least_seconds=0.05, end=end)
    monkeypatch.setattr("training.stall.STALL_FACTOR", 0.0)
    with watch:
        watch.on_step_begin()
        watch.on_step_end()
        watch.on_step_begin()
        assert ended.wait(30)
    assert len(told) == 1 and told[0].startswith("a step takes ") and "the median is 0.0 s" in told[0]


def test_no_step_is_too_long_before_the_first_has_ended_and_then_many_medians_are_allowed():
    watch = StallWatch()
    assert watch.limit_seconds == math.inf
    watch._durations.extend([1.0, 100.0, 100.0])
    assert watch.limit_seconds == 100.0 * STALL_FACTOR
    watch._durations.clear()
    watch._durations.append(0.1)
    assert watch.limit_seconds == LEAST_STALL_SECONDS


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lost_gpu_is_told_from_a_fault_of_the_program_by_a_mock_of_cudas_words(text, lost):
    assert is_device_lost(RuntimeError(text)) is lost
    expected = JobInterrupted if lost else RuntimeError
    with pytest.raises(expected) as caught, device_watched(lambda: 7, 12):
        raise RuntimeError(text)
    if lost:
        result = caught.value.result
        assert (result.status, result.steps_done) == (JobStatus.FAILED, 7)
        assert "a GPU stopped answering after step 7" in result.detail and "run again" in result.detail
