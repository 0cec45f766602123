import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_tiny_base
from tiny_preferences import make_preferences
from transformers import AutoModelForCausalLM

from training.data import load_rows
from training.preference_rows import PairCollator, UnpairedCollator, with_partners
from training.train import train
from tuneline.contracts.artifacts import Adapter, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JobInterrupted, JobStatus
from tuneline.contracts.objectives import loss_weights
from tuneline.contracts.store import read_record

KIND = {"dpo": "preference", "orpo": "preference", "kto": "unpaired_preference", "sft": "text"}
PREFERENCES = ("dpo", "orpo", "kto")
BETA = 0.3
STEADY = {"schedule": "constant", "warmup_share": 0.0, "preference_beta": BETA}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    prepared = {kind: make_preferences(root / kind, base, kind) for kind in set(KIND.values())}
    return {"base": base, **prepared}


def run(folder: Path, folders, objective: str, *, adapter=None, report=None, plan=None, **training):
    inputs = {
        "base": folders["base"],
        "prepared": folders[KIND[objective]],
        "plan": make_plan(folder / "plan", **(plan or {})),
    }
    training = {"objective": objective, **training}
    job = make_job("train", folder / "out", inputs, adapter=adapter or {"rank": 4}, training=training)
    return train(job, report or (lambda _: None)), job.out_dir


def weights(out_dir: Path) -> dict[str, torch.Tensor]:
    (path,) = (out_dir / Adapter.WEIGHTS).glob("*.safetensors")
    return load_file(path)


def logged(out_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out_dir / Adapter.METRICS).read_text().splitlines()]


def base_model(folders):
    return AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.float32).eval()


def trained_model(folders, out_dir):
    return PeftModel.from_pretrained(base_model(folders), out_dir / Adapter.WEIGHTS).eval()


@torch.inference_mode()
def log_probs(model, ids, labels) -> list[float]:
    """Log-probability of each learned token of one row, by itself and without padding."""
    scores = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
    return [float(scores[place, label]) for place, label in enumerate(labels[1:]) if label != -100]


def log_ratio(trained, base, ids, labels) -> float:
    return sum(log_probs(trained, ids, labels)) - sum(log_probs(base, ids, labels))


def rows_of(folders, objective: str, step: int) -> list[dict]:
    rows = load_rows(folders[KIND[objective]], step, 8, 17, objective).dataset
    return [rows[place] for place in range(8 * (step - 1), 8 * step)]


def dpo_loss(trained, base, rows) -> float:
    losses = []
    for row in rows:
        better = log_ratio(trained, base, row["input_ids"], row["labels"])
        worse = log_ratio(trained, base, row["rejected_input_ids"], row["rejected_labels"])
        losses.append(math.log(1 + math.exp(-BETA * (better - worse))))
    return sum(losses) / len(losses)


def orpo_loss(trained, _, rows) -> float:
    losses = []
    for row in rows:
        better = log_probs(trained, row["input_ids"], row["labels"])
        worse = log_probs(trained, row["rejected_input_ids"], row["rejected_labels"])
        means = [sum(values) / len(values) for values in (better, worse)]
        odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in means]
        losses.append(-means[0] - BETA * math.log(1 / (1 + odds[1] / odds[0])))
    return sum(losses) / len(losses)


def kto_loss(trained, base, rows) -> float:
    """Losses of wanted and unwanted answers around the divergence on prompts with their neighbours' answers."""
    moved = []
    for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True):
        start, other_start = (
            next(at for at, label in enumerate(one["labels"]) if label != -100) for one in (row, other)
        )
        ids = row["input_ids"][:start] + other["input_ids"][other_start:]
        labels = [-100] * start + other["labels"][other_start:]
        moved.append(log_ratio(trained, base, ids, labels))
    divergence = max(0.0, sum(moved) / len(moved))
    weigh = loss_weights(72, 24)
    losses = []
    for row in rows:
        away = log_ratio(trained, base, row["input_ids"], row["labels"]) - divergence
        weight, sign = (weigh.desirable, 1) if row["desirable"] else (weigh.undesirable, -1)
        losses.append(weight * (1 - 1 / (1 + math.exp(-BETA * sign * away))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("objective", "expected"), [("dpo", dpo_loss), ("orpo", orpo_loss), ("kto", kto_loss)])
def test_the_loss_of_a_step_is_that_of_the_paper_under_the_weights_before_it(tmp_path, folders, objective, expected):
    _, before = run(tmp_path / "before", folders, objective, plan={"optimizer_steps": 9}, **STEADY)
    _, after = run(tmp_path / "after", folders, objective, plan={"optimizer_steps": 10}, **STEADY)
    trained, rows = trained_model(folders, before), rows_of(folders, objective, 10)
    assert logged(after)[9]["loss"] == pytest.approx(expected(trained, base_model(folders), rows), rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_first_loss_of_dpo_is_that_of_a_coin_and_then_the_margin_grows(tmp_path, folders, method):
    _, out_dir = run(tmp_path, folders, "dpo", adapter={"method": method}, learning_rate=1e-3)
    steps = logged(out_dir)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (steps[0]["reward_margin"], steps[0]["reward_accuracy"]) == (0, 0)
    assert steps[-1]["reward_margin"] > 0.2  # 2 nats at a beta of 0.1
    assert steps[-1]["reward_accuracy"] == 1
    assert steps[-1]["reward_margin"] == pytest.approx(
        steps[-1]["reward_chosen"] - steps[-1]["reward_rejected"], abs=1e-5
    )
    assert not any("ref" in name for name in weights(out_dir))


def test_a_preference_is_learned_for_held_out_pairs(tmp_path, folders):
    _, out_dir = run(tmp_path, folders, "dpo")
    held_out = load_held_out(folders, "preference")
    base, trained = base_model(folders), trained_model(folders, out_dir)
    margins = [
        log_ratio(trained, base, row["input_ids"], row["labels"])
        - log_ratio(trained, base, row["rejected_input_ids"], row["rejected_labels"])
        for row in held_out
    ]
    assert min(margins) > 0
    assert sum(margins) / len(margins) > 5


def load_held_out(folders, kind: str) -> list[dict]:
    return list(Dataset.from_file(str(folders[kind] / PreparedData.HELD_OUT)))


def test_kto_moves_wanted_answers_up_and_unwanted_ones_down(tmp_path, folders):
    _, out_dir = run(tmp_path, folders, "kto", plan={"optimizer_steps": 36}, learning_rate=5e-3)
    base, trained = base_model(folders), trained_model(folders, out_dir)
    moved = {True: [], False: []}
    for row in load_held_out(folders, "unpaired_preference"):
        moved[row["desirable"]].append(log_ratio(trained, base, row["input_ids"], row["labels"]))
    assert sum(moved[True]) / len(moved[True]) > 1
    assert sum(moved[False]) / len(moved[False]) < -1


def test_kto_starts_at_half_of_the_weights(tmp_path, folders):
    _, out_dir = run(tmp_path, folders, "kto", plan={"optimizer_steps": 1})
    wanted = [row["desirable"] for row in rows_of(folders, "kto", 1)]
    undesirable = loss_weights(72, 24).undesirable
    assert undesirable == pytest.approx(72 / 24 / (4 / 3))
    [step] = logged(out_dir)
    assert step["loss"] == pytest.approx(sum(0.5 if one else 0.5 * undesirable for one in wanted) / 8, abs=1e-6)
    assert step["divergence"] == 0


@pytest.mark.parametrize("objective", PREFERENCES)
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(tmp_path, folders, objective):
    cut = {"optimizer_steps": 5, "micro_batch_rows": 1, "accumulation_steps": 8, "activation_checkpointing": True}
    _, whole = run(tmp_path / "whole", folders, objective, plan={"optimizer_steps": 5}, learning_rate=5e-4)
    _, parts = run(tmp_path / "parts", folders, objective, plan=cut, learning_rate=5e-4)
    assert [step["loss"] for step in logged(parts)] == pytest.approx([step["loss"] for step in logged(whole)], rel=1e-4)
    expected, found = weights(whole), weights(parts)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", PREFERENCES)
def test_a_preempted_training_resumes_to_the_bits_of_an_uninterrupted_one(tmp_path, folders, objective):
    def sigterm_after_five(event):
        if event.done == 5 and "loss" in event.metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    _, whole = run(tmp_path / "whole", folders, objective)
    with pytest.raises(JobInterrupted) as stop:
        run(tmp_path / "cut", folders, objective, report=sigterm_after_five)
    assert stop.value.result.status is JobStatus.PREEMPTED
    resumed, cut = run(tmp_path / "cut", folders, objective)
    assert resumed.resumed_from_step == 6
    ours, theirs = weights(cut), weights(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert [(step["step"], step["loss"]) for step in logged(cut)] == [
        (step["step"], step["loss"]) for step in logged(whole)
    ]


def test_plain_texts_are_learned_from_their_second_token_on(tmp_path, folders):
    adapter, _ = run(tmp_path, folders, "sft", plan={"optimizer_steps": 24})
    assert adapter.last_loss < adapter.first_loss - 1
    base, rows = base_model(folders), rows_of(folders, "sft", 1)
    tokens = [value for row in rows for value in log_probs(base, row["input_ids"], row["labels"])]
    assert len(tokens) == sum(len(row["input_ids"]) - 1 for row in rows)
    assert adapter.first_loss == pytest.approx(-sum(tokens) / len(tokens), rel=1e-4)


def test_rows_and_objective_that_do_not_go_together_are_refused_before_the_base_is_loaded(tmp_path, folders):
    inputs = {"base": tmp_path / "nowhere", "prepared": folders["preference"], "plan": make_plan(tmp_path / "plan")}
    with pytest.raises(UserError, match="takes answers with a label, and the rows are preference pairs"):
        train(make_job("train", tmp_path / "out", inputs, training={"objective": "kto"}), lambda _: None)


def test_the_tokens_of_a_pair_are_those_of_both_conversations(tmp_path, folders):
    adapter, _ = run(tmp_path, folders, "dpo")
    prepared = read_record(folders["preference"], PreparedData)
    assert adapter.train_tokens == prepared.train_tokens + prepared.rejected_tokens  # 12 steps of 8 are one pass of 96


def test_pairs_are_collated_with_our_masks_chosen_first():
    rows = [
        {
            "input_ids": [1, 2, 3, 4],
            "labels": [-100, 2, -100, 4],
            "rejected_input_ids": [1, 5],
            "rejected_labels": [-100, 5],
        },
        {"input_ids": [6, 7], "labels": [-100, 7], "rejected_input_ids": [6, 8, 9], "rejected_labels": [-100, 8, -100]},
    ]
    batch = PairCollator(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [6, 7, 0, 0], [1, 5, 0, 0], [6, 8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


def test_labelled_answers_are_collated_beside_their_prompts_with_other_answers():
    row = {"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "desirable": True}
    row |= {"mismatched_input_ids": [1, 2, 7, 9], "mismatched_labels": [-100, -100, 7, 9]}
    batch = UnpairedCollator(pad_token_id=0)(
        [row, {**row, "desirable": False, "input_ids": [4, 5], "labels": [-100, 5]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert batch["KL_input_ids"].tolist() == [[1, 2, 7, 9]] * 2
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 1]] * 2
    assert batch["label"].tolist() == [True, False]


def test_every_prompt_meets_the_answer_before_it_in_its_step_and_no_row_grows_beyond_the_longest():
    long = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, -100, 5], "desirable": True}
    short = {"input_ids": [6, 7, 8, 9], "labels": [-100, 7, -100, 9], "desirable": False}
    laid_out = with_partners(Dataset.from_list([long, short]), [0, 1, 1, 0], 2)
    met = [(row["mismatched_input_ids"], row["mismatched_labels"]) for row in laid_out]
    long_prompt = ([1, 2, 3, 4, 7], [-100, -100, -100, -100, 7])
    assert met == [long_prompt, ([6, 5], [-100, 5]), ([6, 5], [-100, 5]), long_prompt]
    assert [row["input_ids"] for row in laid_out] == [one["input_ids"] for one in (long, short, short, long)]
