from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base
from tiny_moe import EXPERTS, make_tiny_moe
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import linear

import training.train as stage
from training import movement
from training.movement import Movement, checksum, could_move, still_names, trainables
from training.optimizer import split_groups
from training.train import train
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    base = make_tiny_base(root / "base")
    plan = make_plan(root / "plan", optimizer_steps=6)
    return {"base": base, "prepared": make_prepared(root / "prepared", base), "plan": plan}


def run(tmp_path, inputs, report=lambda _: None, **sections):
    job = make_job("train", tmp_path / "out", inputs, **sections)
    return train(job, report)


def freeze_gradient(monkeypatch, part):
    """Leave the parameters whose names contain `part` trainable, with a gradient that is always 0."""
    real = stage.adapters.add_adapter

    def add(*arguments):
        model = real(*arguments)
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.register_hook(torch.zeros_like)
        return model

    monkeypatch.setattr(stage.adapters, "add_adapter", add)


def test_a_tensor_that_no_gradient_reaches_fails_the_run_by_name_at_the_third_step(tmp_path, inputs, monkeypatch):
    freeze_gradient(monkeypatch, "layers.1.self_attn.v_proj.lora_B")
    done = []
    with pytest.raises(JobInterrupted) as stop:
        run(tmp_path, inputs, lambda event: done.append(event.done), training={"warmup_share": 0.0})
    result = stop.value.result
    assert (result.status, result.steps_done) == (JobStatus.FAILED, 3)
    # With `up` at 0, no gradient reaches `down` either.
    assert "2 trainable tensors have not moved by step 3" in result.detail
    assert "model.layers.1.self_attn.v_proj.lora_A" in result.detail
    assert "model.layers.1.self_attn.v_proj.lora_B" in result.detail


def test_weight_decay_does_not_pass_for_learning(tmp_path, inputs, monkeypatch):
    freeze_gradient(monkeypatch, "layers.1.self_attn.v_proj.lora_B")
    training = {"warmup_share": 0.0, "weight_decay": 0.1}
    with pytest.raises(JobInterrupted, match=r"v_proj\.lora_B"):
        run(tmp_path, inputs, training=training)


def test_steps_of_a_warm_up_at_a_rate_of_0_do_not_count(tmp_path, inputs, monkeypatch):
    freeze_gradient(monkeypatch, "layers.1.self_attn.v_proj.lora_B")
    with pytest.raises(JobInterrupted) as stop:
        run(tmp_path, inputs, training={"warmup_share": 0.5})  # rates: 0, a third, two thirds, all
    assert stop.value.result.steps_done == 4


def test_a_resumed_training_is_watched_too(tmp_path, inputs, monkeypatch):
    def stopped(event: ProgressEvent) -> None:
        if event.done == 2 and event.metrics:
            raise JobInterrupted(JobStatus.FAILED, "stopped", 2, 6)

    training = {"checkpoint_every_optimizer_steps": 1, "schedule": "constant", "warmup_share": 0.0}
    with pytest.raises(JobInterrupted, match="stopped"):
        run(tmp_path, inputs, stopped, training=training)
    freeze_gradient(monkeypatch, "lora_A")
    monkeypatch.setattr(movement, "STEPS", 3)
    # The moments of the first attempt go on moving the tensors: they are forgotten, so that only gradients do.
    monkeypatch.setattr(stage.Movement, "on_train_begin", forget_moments(stage.Movement.on_train_begin))
    with pytest.raises(JobInterrupted, match="14 trainable tensors have not moved by step 4"):
        run(tmp_path, inputs, training=training)


def forget_moments(begin):
    def on_train_begin(self, *arguments, optimizer, **options):
        begin(self, *arguments, optimizer=optimizer, **options)
        for state in optimizer.state.values():
            state["exp_avg"].zero_()

    return on_train_begin


@pytest.mark.parametrize("adapter", [{"method": "full"}, {"dora": True}, {"method": "qlora"}])
def test_a_healthy_training_moves_everything(tmp_path, inputs, monkeypatch, adapter):
    settled = []
    real = Movement.on_step_end

    def on_step_end(self, *arguments, **options):
        real(self, *arguments, **options)
        settled.append((self._steps, self._settled, len(self._before)))

    monkeypatch.setattr(Movement, "on_step_end", on_step_end)
    adapter_record = run(tmp_path, inputs, adapter=adapter, training={"warmup_share": 0.0})
    tensors = {"full": 21, "lora": 42, "qlora": 28}[adapter_record.method]
    assert settled[:3] == [(1, False, tensors), (2, False, tensors), (3, True, tensors)]


def test_experts_are_watched_as_one_tensor(tmp_path, inputs):
    base = make_tiny_moe(tmp_path)
    adapter = {"target_parameters": EXPERTS}
    assert run(tmp_path, {**inputs, "base": base}, adapter=adapter).optimizer_steps == 6


def test_a_sum_of_bits_changes_where_a_sum_of_numbers_does_not():
    before = torch.zeros(64)
    after = torch.full((64,), 2e-4)
    after[::2] = -2e-4  # what one Adam step makes of zeros: the numbers add up to 0
    assert float(after.sum()) == float(before.sum())
    assert checksum(after) != checksum(before)
    assert checksum(torch.tensor([1.0])) != checksum(torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0])))
    assert checksum(torch.ones(4, dtype=torch.bfloat16)) != checksum(torch.zeros(4, dtype=torch.bfloat16))


def test_an_expert_without_a_token_may_stand_still_while_another_of_its_layer_moves():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.lora_B" for layer in (0, 1) for expert in (0, 1)]
    assert still_names(dict(zip(names, [True, False, False, False], strict=True))) == names[2:]
    assert still_names({"model.layers.0.self_attn.q_proj.lora_B": False, names[0]: True}) == [
        "model.layers.0.self_attn.q_proj.lora_B"
    ]


def test_a_rate_below_the_spacing_of_the_numbers_is_waited_for_and_a_coarse_format_is_not():
    norms = torch.ones(8)
    assert not could_move(norms, 1e-8)
    assert could_move(norms, 1e-6)
    assert could_move(torch.zeros(8), 1e-12)
    assert could_move(torch.ones(8, dtype=torch.bfloat16), 1e-4)  # stands still for want of digits: that is a failure


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(4))
        self.weight = nn.Parameter(torch.randn(4, 4))


def steps_of(callback, model, optimizer, count):
    """Run optimizer steps as transformers does, and return the step at which the callback was content."""
    args = SimpleNamespace(world_size=1, device="cpu")
    callback.on_train_begin(args, None, None)
    for step in range(1, count + 1):
        callback.on_step_begin(args, None, None, model=model)
        linear(torch.randn(3, 4) * model.norm, model.weight).square().sum().backward()
        optimizer.step()
        callback.on_optimizer_step(args, None, None, optimizer=optimizer)
        optimizer.zero_grad()
        callback.on_step_end(args, SimpleNamespace(global_step=step, max_steps=count), None, model=model)
        if callback._settled:
            return step
    return None


def test_a_full_trainings_norms_at_a_tiny_warm_up_rate_are_no_failure():
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-8, weight_decay=0.0)
    # 3e-8 is half the spacing below 1: three steps of 2e-8 move nothing, and after six the waiting ends.
    assert steps_of(Movement(), model, optimizer, 5) is None
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    assert steps_of(Movement(), model, optimizer, 5) == 3


def test_a_trainable_tensor_outside_the_optimizer_fails_the_run():
    model = Toy()
    optimizer = torch.optim.AdamW([model.weight], lr=1e-3)
    with pytest.raises(JobInterrupted, match="1 trainable tensors have not moved by step 3: norm"):
        steps_of(Movement(), model, optimizer, 5)


def test_a_magnitude_that_bfloat16_is_too_coarse_for_fails_the_run():
    model = Toy()
    model.norm.data = model.norm.data.bfloat16()
    model.weight.data = model.weight.data.bfloat16()

    class Still(torch.optim.SGD):
        """A step far below the spacing of bfloat16 at 1, as the magnitudes of DoRA had (TRL issue 7268)."""

    optimizer = Still([{"params": [model.norm], "lr": 1e-9}, {"params": [model.weight], "lr": 1e-1}])
    callback = Movement()
    args = SimpleNamespace(world_size=1, device="cpu")
    callback.on_train_begin(args, None, None)
    callback.on_step_begin(args, None, None, model=model)
    callback._steps, callback._rate = 3, 1e-3
    model.norm.grad, model.weight.grad = torch.ones_like(model.norm), torch.ones_like(model.weight)
    optimizer.step()
    with pytest.raises(JobInterrupted, match="have not moved by step 3: norm"):
        callback.on_step_end(args, SimpleNamespace(global_step=3, max_steps=9), None, model=model)


def test_what_is_remembered_of_a_full_model_is_a_number_for_each_tensor():
    assert [name for name, _ in trainables(Toy())] == ["norm", "weight"]
    callback = Movement()
    callback.on_train_begin(None, None, None)
    callback.on_step_begin(None, None, None, model=Toy())
    assert {type(value) for value in callback._before.values()} == {int}


class Adapted(nn.Module):
    """Parameters named as peft names them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("lora_A", "lora_B", "lora_magnitude_vector"):
            self.add_module(name, nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)}))


def test_lora_plus_gives_up_factors_their_rate_and_magnitudes_never_decay():
    model = nn.ModuleDict({"q_proj": Adapted()})
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=1e-4)
    split_groups(optimizer, model, 16.0)
    names = {id(parameter): name.split(".")[1] for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "lora_A": (1e-4, 0.1),
        "lora_B": (pytest.approx(1.6e-3), 0.1),
        "lora_magnitude_vector": (1e-4, 0.0),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    assert optimizer.param_groups[0]["lr"] == 1e-4  # what is logged


def test_without_lora_plus_one_group_stays_one():
    model = nn.ModuleDict({"q_proj": Adapted()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    split_groups(optimizer, model, None)
    assert len(optimizer.param_groups) == 1


def test_a_training_keeps_the_ratio_through_its_schedule(tmp_path, inputs, monkeypatch):
    rates = []

    class Look(Movement):
        def on_optimizer_step(self, *arguments, optimizer, **options):
            rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
            super().on_optimizer_step(*arguments, optimizer=optimizer, **options)

    monkeypatch.setattr(stage, "Movement", Look)
    run(tmp_path, inputs, adapter={"lora_plus_ratio": 8}, training={"learning_rate": 1e-3, "warmup_share": 0.5})
    assert rates[0] == [0.0]
    assert [high / low for low, high in rates[1:]] == pytest.approx([8.0] * 5)
    assert max(low for low, _ in rates[1:]) == pytest.approx(1e-3)


def on_a_rank(rank: int, folder: str) -> None:
    """Shard a toy over two processes; only rows of the first are ever moved, or none."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    outcomes = []
    for reaches in (True, False):
        model = nn.Linear(4, 8, bias=False)
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        callback, args = Movement(), SimpleNamespace(world_size=2, device="cpu")
        callback.on_train_begin(args, None, None)
        try:
            for step in range(1, 4):
                callback.on_step_begin(args, None, None, model=model)
                (model(torch.ones(1, 4))[:, :4].sum() * float(reaches)).backward()  # rows 4 to 7 are the other rank's
                optimizer.step()
                callback.on_optimizer_step(args, None, None, optimizer=optimizer)
                optimizer.zero_grad()
                callback.on_step_end(args, SimpleNamespace(global_step=step, max_steps=9), None, model=model)
            outcomes.append("moved" if callback._settled else "waits")
        except JobInterrupted as error:
            outcomes.append(str(error))
    Path(folder, f"rank{rank}").write_text("\n".join(outcomes))
    dist.destroy_process_group()


@pytest.mark.long
def test_ranks_agree_on_a_sharded_tensor_of_which_only_one_sees_a_part_move(tmp_path):
    torch.multiprocessing.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    found = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0][0] == "moved"
    assert "1 trainable tensors have not moved by step 3: weight" in found[0][1]
