import json

import pytest
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import TrainerControl, TrainerState, TrainingArguments

from training import callbacks
from training.callbacks import Peak, Progress
from training.train import train
from tuneline.contracts.artifacts import Adapter

TOKENS_AFTER_STEP = (0, 100, 300, 600, 1000)


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


def logged(tmp_path, monkeypatch, steps, first_step=0, **options):
    """The events of a training whose every step takes ten seconds."""
    clock, events = Clock(), []
    monkeypatch.setattr(callbacks, "time", clock)
    progress = Progress(events.append, tmp_path / "metrics.jsonl", TOKENS_AFTER_STEP, 0.0, **options)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    progress.on_train_begin(arguments, TrainerState(global_step=first_step, max_steps=4), TrainerControl())
    for step in steps:
        clock.now += 10.0
        state = TrainerState(global_step=step, max_steps=4, is_world_process_zero=True)
        progress.on_log(arguments, state, TrainerControl(), {"loss": 1.0, "learning_rate": 0.1, "grad_norm": 2.0})
    return [event.metrics for event in events]


def test_the_time_left_is_that_of_the_tokens_left_at_the_mean_speed(tmp_path, monkeypatch):
    metrics = logged(tmp_path, monkeypatch, [1, 2])
    assert [row["tokens_per_second"] for row in metrics] == [10.0, 20.0]
    assert [row["seconds_left"] for row in metrics] == pytest.approx([900 * 10 / 100, 700 * 20 / 300])


def test_the_time_left_of_a_resumed_training_is_judged_by_its_own_attempt(tmp_path, monkeypatch):
    (row,) = logged(tmp_path, monkeypatch, [3], first_step=2)
    assert row["seconds_left"] == pytest.approx(400 * 10 / 300)


def test_the_share_of_the_peak_is_there_where_a_peak_is_known(tmp_path, monkeypatch):
    rows = logged(tmp_path, monkeypatch, [1, 2], peak=Peak(50.0, "share_of_peak_4n"))
    assert [row["share_of_peak_4n"] for row in rows] == pytest.approx([0.2, 0.4])
    (row,) = logged(tmp_path, monkeypatch, [1], peak=Peak(40.0, "share_of_peak_6n"))
    assert row["share_of_peak_6n"] == pytest.approx(0.25)
    assert not [name for row in [row, *logged(tmp_path, monkeypatch, [1])] for name in row if name.endswith("4n")]


def test_a_cpu_claims_no_share_of_the_peak_of_the_gpu_in_its_plan(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    plan = make_plan(tmp_path / "plan", model_flops_per_token=1e6, peak_flops_per_second=1e12)
    inputs = {"base": base, "prepared": make_prepared(tmp_path / "prepared", base), "plan": plan}
    job = make_job("train", tmp_path / "out", inputs)
    adapter = train(job, lambda _: None)
    rows = [json.loads(line) for line in (job.out_dir / Adapter.METRICS).read_text().splitlines()]
    assert not [name for row in rows for name in row if name.startswith("share_of_peak")]
    assert rows[-1]["seconds_left"] == 0
    assert 100 << 20 < rows[-1]["peak_memory_bytes"] <= adapter.peak_memory_bytes
