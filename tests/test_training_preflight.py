import json
import random

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from tiny_preferences import make_preferences
from transformers import TrainerCallback

import training.preflight as preflight
from training.admission import check_budget, event_of, priced
from training.preflight import Layout, PreflightSteps
from training.train import train
from tuneline.contracts.artifacts import Adapter, Estimate, Plan, Preflight
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent
from tuneline.contracts.spec import BudgetSpec
from tuneline.contracts.store import read_record

MEASURED = Preflight(
    longest_steps=3,
    micro_batch_tokens=100,
    seconds=1.0,
    peak_memory_bytes=3 << 30,
    tokens_per_second=1000.0,
    hours=2.0,
    usd=None,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", micro_batch_rows=4, accumulation_steps=2)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


def run(folder, inputs, events=None, **sections):
    job = make_job("train", folder / "out", inputs, **sections)
    return train(job, (events if events is not None else []).append), job.out_dir


def weights(out_dir):
    (path,) = (out_dir / Adapter.WEIGHTS).glob("*.safetensors")
    return load_file(path)


def losses(out_dir):
    return [json.loads(line)["loss"] for line in (out_dir / Adapter.METRICS).read_text().splitlines()]


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [
        ({"method": "lora", "dropout": 0.2}, "float32"),
        ({"method": "qlora", "dropout": 0.2}, "bfloat16"),
        ({"method": "full"}, "bfloat16"),
        ({"method": "lora", "dora": True, "lora_plus_ratio": 16.0}, "float32"),
    ],
)
def test_weights_and_losses_are_bit_equal_with_and_without_a_preflight(tmp_path, inputs, monkeypatch, adapter, dtype):
    # Dropout draws from torch's generator in every step; weight decay and Adam's moments would show a step.
    sections = {"adapter": adapter, "model": {"dtype": dtype}, "training": {"weight_decay": 0.1, "warmup_share": 0.0}}
    sections["training"]["log_every_optimizer_steps"] = 1
    found, measured = run(tmp_path / "measured", inputs, **sections)
    assert found.preflight is not None
    monkeypatch.setattr(PreflightSteps, "on_train_begin", TrainerCallback.on_train_begin)
    found, plain = run(tmp_path / "plain", inputs, **sections)
    assert found.preflight is None
    ours, theirs = weights(measured), weights(plain)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert losses(measured) == losses(plain)


@pytest.mark.parametrize(
    ("objective", "kind"), [("dpo", "preference"), ("orpo", "preference"), ("kto", "unpaired_preference")]
)
def test_a_preflight_leaves_no_trace_in_a_training_towards_preferences(tmp_path, inputs, monkeypatch, objective, kind):
    inputs = {**inputs, "prepared": make_preferences(tmp_path / "prepared", inputs["base"], kind)}
    training = {"objective": objective, "warmup_share": 0.0}
    found, measured = run(tmp_path / "measured", inputs, training=training)
    assert found.preflight.longest_steps == 3
    monkeypatch.setattr(PreflightSteps, "on_train_begin", TrainerCallback.on_train_begin)
    _, plain = run(tmp_path / "plain", inputs, training=training)
    ours, theirs = weights(measured), weights(plain)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert losses(measured) == losses(plain)


def test_three_real_steps_take_the_longest_micro_batch_and_two_a_middle_one(tmp_path, inputs, monkeypatch):
    seen = []
    states = []
    real_step = PreflightSteps._step

    def step(self, rows, micro_batches):
        seconds = real_step(self, rows, micro_batches)
        seen.append((max(len(self._trainer.train_dataset[row]["input_ids"]) for row in rows), len(rows), micro_batches))
        states.append([int(state["step"]) for state in self._trainer.optimizer.state.values()])
        return seconds

    monkeypatch.setattr(PreflightSteps, "_step", step)
    found, _ = run(tmp_path, inputs)
    longest = max(len(ids) for ids in load_rows_of(inputs))
    assert seen[:3] == [(longest, 4, 1), (longest, 4, 2), (longest, 4, 2)]
    assert seen[3] == seen[4]
    assert seen[3][0] < longest
    assert [set(steps) for steps in states] == [{1}, {2}, {3}, {4}, {5}]  # the optimizer really stepped
    assert found.preflight.longest_steps == 3
    assert found.preflight.micro_batch_tokens == 4 * longest


def load_rows_of(inputs):
    from datasets import Dataset

    return Dataset.from_file(str(inputs["prepared"] / "train.arrow"))["input_ids"]


def test_random_states_are_put_back(tmp_path, inputs, monkeypatch):
    states = []
    real = PreflightSteps.on_train_begin

    def state():
        return torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()

    def greedy_step(self, rows, micro_batches):
        torch.rand(5), random.random(), numpy.random.rand(5)
        return preflight.StepSeconds(1.0, 1.0)

    def between(self, *arguments, **options):
        states.append(state())
        real(self, *arguments, **options)
        states.append(state())

    monkeypatch.setattr(PreflightSteps, "_step", greedy_step)
    monkeypatch.setattr(PreflightSteps, "on_train_begin", between)
    run(tmp_path, inputs)
    (torch_before, *others_before), (torch_after, *others_after) = states
    assert torch.equal(torch_before, torch_after)
    assert others_before == others_after


def test_a_training_over_budget_is_refused_before_its_first_step_with_every_limit_that_it_breaks(tmp_path, inputs):
    events: list[ProgressEvent] = []
    budget = {"max_hours": 1e-7, "max_memory_gib": 0.01}
    with pytest.raises(UserError) as refused:
        run(tmp_path, inputs, events, budget=budget)
    where = {problem.where for problem in refused.value.problems}
    assert where == {"budget.max_hours", "budget.max_memory_gib"}
    assert refused.value.exit_code == 2
    assert {event.done for event in events} == {0}
    assert not list((tmp_path / "out").rglob("step-*"))
    accepted, _ = run(tmp_path, inputs)  # the budget raised: nothing stands in its way
    assert accepted.optimizer_steps == 12


def test_the_price_is_the_plans_and_money_is_refused_with_the_steps_that_can_be_afforded(tmp_path):
    eight_dollars_an_hour = {
        "hours": Estimate(low=0.5, expected=1.0, high=2.0),
        "usd": Estimate(low=4.0, expected=8.0, high=16.0),
        "optimizer_steps": 100,
    }
    plan = read_record(make_plan(tmp_path, **eight_dollars_an_hour), Plan)
    measured = priced(MEASURED, plan)
    assert measured.usd == pytest.approx(16.0)
    check_budget(measured, BudgetSpec(max_usd=16.5, max_hours=2.1, max_memory_gib=3.1), plan)
    with pytest.raises(UserError) as refused:
        check_budget(measured, BudgetSpec(max_usd=4.0), plan)
    (problem,) = refused.value.problems
    assert problem.where == "budget.max_usd"
    assert "16 USD" in problem.what
    assert "training.max_optimizer_steps: 25 (of 100)" in problem.fix


def test_the_words_of_a_preflight_fit_a_terminal_of_eighty_columns_and_name_what_was_planned(tmp_path):
    planned = {
        "memory_bytes": Estimate(low=0.0, expected=14.1 * 2**30, high=0.0),
        "tokens_per_second": Estimate(low=0.0, expected=12_100.0, high=0.0),
    }
    plan = read_record(make_plan(tmp_path, **planned), Plan)
    event = event_of(MEASURED.model_copy(update={"tokens_per_second": 11_240.0}), plan)
    assert event.note == "preflight 3.0 GiB (planned 14.1), 11,240 tokens/s (planned 12,100), 2.0 h to go"
    assert len(event.note) <= 80
    assert event.metrics["preflight_hours"] == 2.0


def test_a_resumed_training_measures_nothing_and_keeps_the_figures_of_its_beginning(tmp_path, inputs, monkeypatch):
    def stop_at_six(event):
        if event.done == 6 and event.metrics:
            raise JobInterrupted(JobStatus.FAILED, "stopped by the test")

    training = {"checkpoint_every_optimizer_steps": 3, "log_every_optimizer_steps": 1}
    job = make_job("train", tmp_path / "out", inputs, training=training)
    with pytest.raises(JobInterrupted):
        train(job, stop_at_six)
    kept = Preflight.model_validate_json((job.out_dir / Adapter.CHECKPOINTS / "preflight.json").read_text())

    def never(*_):
        raise AssertionError("a resumed training has been measured")

    monkeypatch.setattr(PreflightSteps, "_step", never)
    resumed = train(job, lambda _: None)
    assert resumed.resumed_from_step >= 3
    assert resumed.preflight == kept


def test_a_loss_that_is_no_number_is_left_to_the_training_to_say(tmp_path, inputs):
    broken = make_tiny_base(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobInterrupted) as stop:
        run(tmp_path, {**inputs, "base": broken})
    assert stop.value.result.status is JobStatus.DIVERGED
    assert not (tmp_path / "out" / Adapter.CHECKPOINTS / "preflight.json").exists()


def test_no_step_begins_that_would_end_after_the_limit(tmp_path, inputs, monkeypatch):
    begun = []
    monkeypatch.setitem(preflight.LIMIT_SECONDS, "cpu", 20.0)

    def slow_step(self, rows, micro_batches):
        begun.append(rows)
        return preflight.StepSeconds(11.0, 0.0)  # the next step, of two micro-batches, would take 22 s

    monkeypatch.setattr(PreflightSteps, "_step", slow_step)
    found, _ = run(tmp_path, inputs)
    assert len(begun) == 1
    assert found.preflight.longest_steps == 1


def test_time_to_finish_is_that_of_the_middle_micro_batch_times_all_of_them(tmp_path, inputs, monkeypatch):
    def step(self, rows, micro_batches):
        longest = max(self._row_tokens)
        return preflight.StepSeconds(3.0 if self._row_tokens[rows[0]] == longest else 2.0, 0.5)

    monkeypatch.setitem(preflight.LIMIT_SECONDS, "cpu", 1e9)
    monkeypatch.setattr(PreflightSteps, "_step", step)
    found, _ = run(tmp_path, inputs)
    assert found.preflight.hours == pytest.approx(12 * (2 * 2.0 + 0.5) / 3600)
    assert found.preflight.tokens_per_second == pytest.approx(found.train_tokens / (12 * 4.5))


def test_padding_counts_in_the_tokens_of_a_micro_batch_unless_its_rows_are_joined():
    rows, tokens = [[0, 1], [2, 3], [4, 5]], [9, 1, 6, 6, 5, 4]
    padded, joined = Layout(rows, tokens, padded=True), Layout(rows, tokens, padded=False)
    assert [padded.computed_tokens(row) for row in rows] == [18, 12, 10]
    assert (padded.longest, padded.middle) == ([0, 1], [2, 3])
    assert [joined.computed_tokens(row) for row in rows] == [10, 12, 9]
    assert (joined.longest, joined.middle) == ([2, 3], [0, 1])
