import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from transformers import AutoModelForCausalLM

from training.data import load_rows
from training.precision import choose_precision
from training.train import train
from tuneline.contracts.artifacts import Adapter, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": make_plan(root / "plan")}


def run(tmp_path, inputs, events=None, **sections):
    job = make_job("train", tmp_path / "out", inputs, **sections)
    return train(job, (events if events is not None else []).append), job.out_dir


def adapter_tensors(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(out_dir / Adapter.WEIGHTS / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_learns_and_is_kept_in_float32_beside_a_base_in_bfloat16(tmp_path, inputs, method):
    adapter, out_dir = run(tmp_path, inputs, adapter={"method": method, "rank": 4}, model={"dtype": "bfloat16"})
    assert adapter.last_loss < adapter.first_loss - 0.5
    assert {tensor.dtype for tensor in adapter_tensors(out_dir).values()} == {torch.float32}
    assert adapter.optimizer_steps == 12
    assert adapter.trainable_parameters == sum(tensor.numel() for tensor in adapter_tensors(out_dir).values())
    as_trained = json.loads((out_dir / "as_trained.json").read_text())
    assert as_trained["dtype"] == "bfloat16"
    quantised = {name.rpartition(".")[2] for name in as_trained["nf4_modules"]}
    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert quantised == (everything if method == "qlora" else set())
    covered = {row.module: (row.adapted, row.total) for row in adapter.coverage}
    assert covered == {**dict.fromkeys(everything, (2, 2)), "lm_head": (0, 1)}


def test_a_full_training_keeps_every_weight_in_float32(tmp_path, inputs):
    adapter, out_dir = run(tmp_path, inputs, adapter={"method": "full"}, model={"dtype": "bfloat16"})
    trained = load_file(out_dir / Adapter.WEIGHTS / "model.safetensors")
    before = load_file(inputs["base"] / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert trained.keys() == before.keys()
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert adapter.trainable_parameters == sum(tensor.numel() for tensor in before.values())


def test_the_artifact_holds_results_only(tmp_path, inputs):
    _, out_dir = run(tmp_path, inputs, training={"checkpoint_every_optimizer_steps": 4})
    assert {path.name for path in out_dir.iterdir()} == {"as_trained.json", "metrics.jsonl", "weights"}
    config = json.loads((out_dir / Adapter.WEIGHTS / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"  # as the config calls it, not where it lay


def test_the_first_loss_is_the_cross_entropy_of_the_learned_tokens_of_the_first_step(tmp_path, inputs):
    adapter, _ = run(tmp_path, inputs)
    rows = load_rows(inputs["prepared"], steps=1, batch_rows=8, seed=17).dataset
    model = AutoModelForCausalLM.from_pretrained(inputs["base"], dtype=torch.float32)
    losses = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        scores = torch.log_softmax(model(ids).logits[0, :-1].detach(), dim=-1)
        learned = labels[1:] != -100
        losses += (-scores[learned].gather(1, labels[1:][learned][:, None])).flatten().tolist()
    assert adapter.first_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("changes", [{"micro_batch_rows": 2, "accumulation_steps": 4}, {"packing": True}])
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(tmp_path, inputs, changes):
    _, whole = run(tmp_path / "whole", inputs)
    _, cut = run(tmp_path / "cut", {**inputs, "plan": make_plan(tmp_path / "plan", **changes)})
    expected, found = adapter_tensors(whole), adapter_tensors(cut)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_changes_no_gradient(tmp_path, inputs):
    plan = make_plan(tmp_path / "plan", activation_checkpointing=True)
    _, plain = run(tmp_path / "plain", inputs)
    _, recomputed = run(tmp_path / "recomputed", {**inputs, "plan": plan})
    expected, found = adapter_tensors(plain), adapter_tensors(recomputed)
    assert all(torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-5) for name, tensor in expected.items())


def test_progress_counts_optimizer_steps_and_the_metrics_file_holds_each_logged_step_once(tmp_path, inputs):
    events: list[ProgressEvent] = []
    adapter, out_dir = run(tmp_path, inputs, events, training={"log_every_optimizer_steps": 5})
    logged = [json.loads(line) for line in (out_dir / Adapter.METRICS).read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 5, 10, 12]
    assert [event.done for event in events] == [0, 0, 1, 5, 10, 12]  # preflight begun, preflight measured, steps
    assert {event.planned for event in events} == {12}
    assert logged[-1]["tokens"] == adapter.train_tokens
    rows = Dataset.from_file(str(inputs["prepared"] / PreparedData.TRAIN))
    assert adapter.train_tokens == sum(len(ids) for ids in rows["input_ids"])  # 12 steps of 8 are one pass of 96
    assert all(row["tokens_per_second"] > 0 and row["grad_norm"] > 0 for row in logged)


def test_warm_up_is_a_share_of_the_steps(tmp_path, inputs):
    _, out_dir = run(tmp_path, inputs, training={"warmup_share": 0.5, "schedule": "constant", "learning_rate": 6e-3})
    rates = [json.loads(line)["learning_rate"] for line in (out_dir / Adapter.METRICS).read_text().splitlines()]
    assert rates == pytest.approx([0, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3] + [6e-3] * 6)


@pytest.mark.parametrize("targets", [["q_proj", "query"], ["lm_head"], "queries"])
def test_a_target_that_cannot_be_adapted_is_the_users_error_and_names_what_can(tmp_path, inputs, targets):
    with pytest.raises(UserError) as error:
        run(tmp_path, inputs, adapter={"target_modules": targets})
    assert len(error.value.problems) == 1
    problem = error.value.problems[0]
    assert problem.where == "adapter.target_modules"
    assert f"`{targets if isinstance(targets, str) else targets[-1]}`" in problem.what
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in problem.fix
    assert "lm_head" not in problem.fix


def test_named_targets_are_the_only_ones_adapted(tmp_path, inputs):
    adapter, out_dir = run(tmp_path, inputs, adapter={"target_modules": ["q_proj", "v_proj"]})
    assert {row.module for row in adapter.coverage if row.adapted} == {"q_proj", "v_proj"}
    assert len(adapter_tensors(out_dir)) == 8  # two layers, two modules, two factors


def test_a_loss_that_is_no_number_stops_the_training_as_diverged_and_leaves_no_checkpoint(tmp_path, inputs):
    broken = make_tiny_base(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobInterrupted) as stop:
        run(tmp_path, {**inputs, "base": broken}, training={"checkpoint_every_optimizer_steps": 1})
    assert stop.value.result.status is JobStatus.DIVERGED
    assert (stop.value.result.steps_done, stop.value.result.steps_planned) == (1, 12)
    assert not list((tmp_path / "out" / "checkpoints").glob("step-*"))


def test_the_saved_adapter_is_what_peft_loads(tmp_path, inputs):
    adapter, out_dir = run(tmp_path, inputs)
    base = AutoModelForCausalLM.from_pretrained(inputs["base"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out_dir / Adapter.WEIGHTS).eval()
    rows = load_rows(inputs["prepared"], steps=12, batch_rows=8, seed=17).dataset
    last = rows[len(rows) - 8 :]
    losses = [
        model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        for ids, labels in zip(last["input_ids"], last["labels"], strict=True)
    ]
    assert sum(losses) / 8 == pytest.approx(adapter.last_loss, abs=0.1)


@pytest.mark.parametrize(
    ("dtype", "device", "fast", "frozen", "autocast"),
    [
        ("bfloat16", "cpu", True, torch.bfloat16, torch.bfloat16),
        ("bfloat16", "cpu", False, torch.float32, None),
        ("bfloat16", "cuda", True, torch.bfloat16, torch.bfloat16),
        ("float16", "cpu", True, torch.float32, None),
        ("float16", "cuda", False, torch.float16, torch.float16),
        ("float32", "cuda", True, torch.float32, None),
    ],
)
def test_half_precision_is_used_where_the_device_is_quick_at_it(dtype, device, fast, frozen, autocast):
    precision = choose_precision(dtype, device, fast_bfloat16=fast)
    assert (precision.frozen, precision.autocast) == (frozen, autocast)
    assert precision.stored is getattr(torch, dtype)
