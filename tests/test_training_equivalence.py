"""What must not change the weights: how a step is cut, padded, joined, or which head computes the loss."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base, put_record, write_rows

import training.engine
from training.data import load_rows
from training.head import loss_of_fused_head
from training.micro_batches import cut
from training.train import train
from tuneline.contracts.artifacts import Adapter, PreparedData
from tuneline.contracts.records import IGNORED_LABEL, PreparedRow
from tuneline.contracts.store import read_record


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    return {"base": base, "prepared": lengthen(make_prepared(root / "prepared", base))}


def lengthen(prepared):
    """Repeat the prompts of some rows, so that a micro-batch holds now two rows and now eight."""
    rows = []
    for number, row in enumerate(Dataset.from_file(str(prepared / PreparedData.TRAIN)).to_list()):
        prompt = row["labels"].count(IGNORED_LABEL)
        more = number * number % 7
        row["input_ids"] = row["input_ids"][:prompt] * more + row["input_ids"]
        row["labels"] = [IGNORED_LABEL] * (prompt * more) + row["labels"]
        rows.append(row)
    write_rows(prepared / PreparedData.TRAIN, PreparedRow, rows)
    lengths = [len(row["input_ids"]) for row in rows]
    record = read_record(prepared, PreparedData)
    spread = record.lengths.model_copy(update={"max": max(lengths)})
    changes = {"lengths": spread, "train_tokens": sum(lengths)}
    return put_record(prepared, "prepare", record.model_copy(update=changes))


def run(folder, inputs, changes, **sections):
    job = make_job("train", folder / "out", {**inputs, "plan": make_plan(folder / "plan", **changes)}, **sections)
    train(job, lambda _: None)
    (weights,) = (job.out_dir / Adapter.WEIGHTS).glob("*.safetensors")
    lines = (job.out_dir / Adapter.METRICS).read_text().splitlines()
    return load_file(weights), [json.loads(line)["loss"] for line in lines]


def assert_same_training(found, expected):
    """Losses of all 12 steps to 1e-5; weights to a thousandth of a step's length of 2e-3."""
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def eight_by_one(tmp_path_factory, inputs):
    return run(tmp_path_factory.mktemp("whole"), inputs, {"micro_batch_rows": 8, "accumulation_steps": 1})


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_accumulation_of_any_length_trains_the_same(tmp_path, inputs, eight_by_one, rows, accumulation, packing):
    changes = {"micro_batch_rows": rows, "accumulation_steps": accumulation, "packing": packing}
    assert_same_training(run(tmp_path, inputs, changes), eight_by_one)


def test_micro_batches_of_a_step_hold_uneven_numbers_of_rows_here(inputs):
    """Or the test above would not tell a mean of means from a mean."""
    rows = load_rows(inputs["prepared"], steps=12, batch_rows=8, seed=17)
    longest = read_record(inputs["prepared"], PreparedData).longest_tokens
    steps = [rows.row_tokens[start : start + 8] for start in range(0, 96, 8)]
    sizes = {tuple(map(len, cut(step, 2 * longest, joined=True))) for step in steps}
    assert {len(step) for step in sizes} == {1, 2, 3, 4}
    assert any(len(set(step)) > 1 for step in sizes)


def test_the_head_of_gpus_trains_the_same(tmp_path, inputs, eight_by_one, monkeypatch):
    # Which head is used follows from the device; here TRL's own, with micro-batches that are joined and cut.
    monkeypatch.setattr(
        training.engine,
        "loss_at_learned_positions",
        lambda model, _, micro_batch: loss_of_fused_head(model, micro_batch),
    )
    found = run(tmp_path, inputs, {"micro_batch_rows": 4, "accumulation_steps": 2, "packing": True})
    assert_same_training(found, eight_by_one)


@pytest.mark.parametrize("adapter", [{"method": "lora"}, {"method": "lora", "dropout": 0.1}, {"method": "full"}])
def test_the_same_seed_gives_the_same_bits(tmp_path, inputs, adapter):
    changes = {"optimizer_steps": 6, "packing": True}
    sections = {"adapter": adapter, "model": {"dtype": "bfloat16"}}
    first, second = (run(tmp_path / name, inputs, changes, **sections) for name in ("first", "second"))
    assert [name for name in first[0] if not torch.equal(first[0][name], second[0][name])] == []
    assert first[1] == second[1]
    other = run(tmp_path / "other", inputs, changes, **sections, training={"seed": 18})
    assert any(not torch.equal(first[0][name], other[0][name]) for name in first[0])


@pytest.mark.long
def test_compiled_layers_train_the_same(tmp_path, inputs, eight_by_one):
    changes = {"micro_batch_rows": 4, "accumulation_steps": 2, "packing": True}
    assert_same_training(run(tmp_path, inputs, changes, training={"compile": True}), eight_by_one)
