import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from planning_cases import LAPTOP
from safetensors.torch import load_file, save_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base, put_record
from tiny_moe import EXPERTS, make_tiny_moe
from tiny_preferences import make_preferences
from transformers import AutoModelForCausalLM

import training.train as stage
from training import adapters, nf4
from training.base_model import load_base
from training.coverage import coverage
from training.merge import merge
from training.precision import Precision, choose_precision
from training.recipe import merged_tensor, read_recipe
from training.scoring import answer_logits, read_samples
from training.train import train
from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.artifacts import Adapter, MergedModel, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JobInterrupted, JobStatus, ProgressEvent
from tuneline.contracts.store import read_record
from tuneline.planning.batching import recipe_of
from tuneline.planning.hardware import device_of
from tuneline.planning.model_shape import shape_of_folder

FIRST_LAYER = r"re:model\.layers\.0\.self_attn\.(q|v)_proj"
NO_START = Path("unused")
SAFETENSORS = "adapter_model.safetensors"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("dense", {"dora": True}),
    "pissa": ("dense", {"initialisation": "pissa", "rank": 4, "alpha": 6}),
    "regex": ("dense", {"target_modules": FIRST_LAYER}),
    "qlora dora": ("dense", {"method": "qlora", "dora": True}),
    "experts": ("mixture", {"target_parameters": EXPERTS, "rslora": True, "rank": 4, "alpha": 8}),
}
MORE_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("dense", {}),
    "rslora": ("dense", {"rslora": True, "alpha": 8, "rank": 4}),
    "lora+": ("dense", {"lora_plus_ratio": 16}),
    "qlora": ("dense", {"method": "qlora"}),
    "full": ("dense", {"method": "full"}),
    "pissa dora rslora": ("dense", {"initialisation": "pissa", "dora": True, "rslora": True, "rank": 4, "alpha": 4}),
    "experts alone": ("mixture", {"target_parameters": EXPERTS, "target_modules": []}),
    "experts fused on disk": ("fused mixture", {"target_parameters": EXPERTS}),
    "qlora experts": ("mixture", {"method": "qlora", "target_parameters": EXPERTS}),
    "full mixture": ("mixture", {"method": "full"}),
}
EVERY_METHOD = [*METHODS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_METHODS)]


def ignore(_: ProgressEvent) -> None:
    pass


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {
        "dense": make_tiny_base(tmp_path_factory.mktemp("dense")),
        "mixture": make_tiny_moe(tmp_path_factory.mktemp("mixture")),
        "fused mixture": make_tiny_moe(tmp_path_factory.mktemp("fused"), fused_files=True),
    }


def run(root, base, steps=3, dtype="float32", training=None, **adapter):
    """Train; keep the live model's answers as it ended."""
    prepared = make_prepared(root / "prepared", base)
    inputs = {"base": base, "prepared": prepared, "plan": make_plan(root / "plan", optimizer_steps=steps)}
    sections = {"model": {"dtype": dtype}, "adapter": adapter, "training": {"learning_rate": 5e-3, **(training or {})}}
    job = make_job("train", root / "train", inputs, **sections)
    live: list[torch.Tensor] = []
    finish = stage._finish

    def keep_answers(job, trainer, *rest):
        model = trainer.model.eval()
        nf4.keep_unpacked(model)
        live.extend(answer_logits(model, sample) for sample in read_samples(prepared))
        return finish(job, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_finish", keep_answers)
        record = train(job, ignore)
    put_record(job.out_dir, "train", record)
    return SimpleNamespace(record=record, job=job, prepared=prepared, base=base, live=live, sections=sections)


def merged(root, trained):
    inputs = {"base": trained.base, "prepared": trained.prepared, "adapter": trained.job.out_dir}
    job = make_job("merge", root / "merge", inputs, **trained.sections)
    return merge(job, ignore), job.out_dir / MergedModel.MODEL


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bases):
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            kind, adapter = {**METHODS, **MORE_METHODS}[name]
            made[name] = run(tmp_path_factory.mktemp("trained"), bases[kind], **adapter)
        return made[name]

    return of


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_merged_model_answers_as_the_live_one_did(tmp_path, trained, method):
    result = trained(method)
    record, folder = merged(tmp_path, result)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(result.base, dtype=torch.float32).eval()
    samples = read_samples(result.prepared)
    for sample, expected in zip(samples, result.live, strict=True):
        torch.testing.assert_close(answer_logits(model, sample), expected, rtol=1e-4, atol=2e-4)
    trained_away = max(
        float((answer_logits(base, sample) - expected).abs().max())
        for sample, expected in zip(samples, result.live, strict=True)
    )
    assert trained_away > 0.01  # the base does not pass for it
    assert record.certificate.mean_kl < 1e-9


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_plan_counts_the_parameters_that_are_trained(trained, method):
    result = trained(method)
    spec = result.job.spec
    data = read_record(result.prepared, PreparedData)
    shape = shape_of_folder(result.base)
    recipe = recipe_of(spec, shape, data, device_of(spec.budget, LAPTOP), checkpointing=False)
    assert recipe.trainable_parameters(shape) == result.record.trainable_parameters


@pytest.mark.parametrize(("method", "pairs"), [("regex", 2), ("dora", 14), ("experts", 12)])
def test_every_pair_is_used_once_however_many_tensors_it_changes(trained, method, pairs):
    result = trained(method)
    recipe = read_recipe(result.base, result.job.out_dir)
    assert recipe.pairs == pairs
    assert len(recipe.updates) == {"regex": 2, "dora": 14, "experts": 8 + 2 * 4 * 3}[method]


def test_an_experts_part_of_a_pair_is_the_delta_that_peft_computes_for_the_fused_weight(trained, bases):
    result = trained("experts")
    live = AutoModelForCausalLM.from_pretrained(result.base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(live, result.job.out_dir / Adapter.WEIGHTS).merge_and_unload()
    recipe = read_recipe(result.base, result.job.out_dir)
    fused = expected.model.layers[1].mlp.experts
    for expert in range(4):
        for half, name in enumerate(("gate_proj", "up_proj")):
            found = merged_tensor(recipe, f"model.layers.1.mlp.experts.{expert}.{name}.weight")
            torch.testing.assert_close(found, fused.gate_up_proj.data[expert, 32 * half : 32 * (half + 1)])
        found = merged_tensor(recipe, f"model.layers.1.mlp.experts.{expert}.down_proj.weight")
        torch.testing.assert_close(found, fused.down_proj.data[expert])


def test_pissa_starts_at_the_base_and_its_artifact_is_plain_lora_against_it(tmp_path, bases, trained):
    precision = Precision("cpu", torch.bfloat16, frozen=torch.bfloat16, autocast=None)
    base = load_base(bases["dense"], "lora", precision, "sdpa")
    before = {name: module.weight.clone() for name, module in base.named_modules() if name.endswith("q_proj")}
    model = adapters.add_adapter(base, AdapterSpec(initialisation="pissa", rank=4), tmp_path / "start")
    for name, layer in adapters.lora_layers(model):
        if name in before:
            whole = layer.get_base_layer().weight.float() + layer.get_delta_weight("default")
            assert not torch.equal(layer.get_base_layer().weight, before[name])
            # Rounding of the remainder alone: 2^-9 of its largest number.
            assert (whole - before[name].float()).abs().max() <= before[name].abs().max() / 2**8
    result = trained("pissa")
    config = json.loads((result.job.out_dir / Adapter.WEIGHTS / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 12, True)
    plain = AutoModelForCausalLM.from_pretrained(result.base, dtype=torch.float32)
    plain = PeftModel.from_pretrained(plain, result.job.out_dir / Adapter.WEIGHTS).eval()
    for sample, expected in zip(read_samples(result.prepared), result.live, strict=True):
        torch.testing.assert_close(answer_logits(plain, sample), expected, rtol=1e-3, atol=1e-3)


def test_pissas_remainder_is_made_anew_from_the_kept_factors_bit_for_bit(tmp_path, bases):
    precision = Precision("cpu", torch.bfloat16, frozen=torch.bfloat16, autocast=None)
    spec = AdapterSpec(initialisation="pissa", rank=4, rslora=True)
    start = tmp_path / "start"

    def layers():
        torch.manual_seed(len(list(tmp_path.iterdir())))  # another state each time
        model = adapters.add_adapter(load_base(bases["dense"], "lora", precision, "sdpa"), spec, start)
        return dict(adapters.lora_layers(model))

    first, again = layers(), layers()
    assert len(first) == 14
    assert all(torch.equal(first[name].get_base_layer().weight, again[name].get_base_layer().weight) for name in first)
    # Another machine's decomposition may have other signs: what was kept decides, not what is computed here.
    kept = load_file(start)
    save_file({name: -factors for name, factors in kept.items()}, start)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    turned = layers()["model.layers.0.self_attn.q_proj"]
    assert torch.equal(turned.lora_A["default"].weight, -kept[f"{name}.lora_A.weight"])
    assert torch.equal(turned.lora_B["default"].weight, -kept[f"{name}.lora_B.weight"])


def test_pissa_with_a_bfloat16_base_merges_as_it_was_trained(tmp_path):
    base = make_tiny_base(tmp_path / "base", dtype="bfloat16")
    result = run(tmp_path, base, dtype="bfloat16", initialisation="pissa")
    record, _ = merged(tmp_path, result)
    recipe = read_recipe(base, result.job.out_dir)
    name = "model.layers.0.mlp.up_proj.weight"
    update = recipe.updates[name]
    stored = load_file(base / "model.safetensors")[name]
    rank = update.down.shape[0] // 2
    left = (stored.float() + 2.0 * update.up[:, rank:] @ update.down[rank:]).to(recipe.remainder_dtype)
    expected = left.float() + 2.0 * update.up[:, :rank] @ update.down[:rank]
    torch.testing.assert_close(update.added_to(stored), expected, rtol=1e-6, atol=1e-6)
    assert record.certificate.mean_kl < 3e-5


@pytest.mark.parametrize("adapter", [{"initialisation": "pissa"}, {"target_parameters": EXPERTS}, {"dora": True}])
def test_a_stopped_training_resumes_to_the_same_bits(tmp_path, bases, adapter):
    base = bases["mixture" if "target_parameters" in adapter else "dense"]
    prepared = make_prepared(tmp_path / "prepared", base)
    inputs = {"base": base, "prepared": prepared, "plan": make_plan(tmp_path / "plan", optimizer_steps=8)}
    training = {"checkpoint_every_optimizer_steps": 4}

    def stop(event: ProgressEvent) -> None:
        if event.done == 5 and event.metrics:
            raise JobInterrupted(JobStatus.FAILED, "stopped", 5, 8)

    straight = make_job("train", tmp_path / "straight", inputs, adapter=adapter, training=training)
    train(straight, ignore)
    stopped = make_job("train", tmp_path / "stopped", inputs, adapter=adapter, training=training)
    with pytest.raises(JobInterrupted):
        train(stopped, stop)
    assert train(stopped, ignore).resumed_from_step == 4
    ours, theirs = (load_file(job.out_dir / Adapter.WEIGHTS / SAFETENSORS) for job in (stopped, straight))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_under_trl_a_quantised_bases_trainables_keep_their_float32_values(tmp_path, bases, monkeypatch):
    starts: list[dict[str, torch.Tensor]] = []
    real = adapters.add_adapter

    def add(*arguments):
        model = real(*arguments)
        starts.append({name: value.clone() for name, value in model.named_parameters() if value.requires_grad})
        return model

    dtypes = []

    class Look(stage.Movement):
        def on_train_begin(self, *arguments, model, **options):
            super().on_train_begin(*arguments)
            trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
            frozen = {value.dtype for value in model.parameters() if not value.requires_grad}
            assert all(torch.equal(trained[name], starts[0][name]) for name in starts[0])
            dtypes.append(({value.dtype for value in trained.values()}, frozen))

        def on_train_end(self, *_, optimizer, **__):
            moments = {value.dtype for state in optimizer.state.values() for value in state.values()}
            dtypes.append((moments, set()))

    monkeypatch.setattr(stage.adapters, "add_adapter", add)
    monkeypatch.setattr(stage, "Movement", Look)
    monkeypatch.setattr("training.setup.has_fast_bfloat16", lambda _: True)  # frozen in bfloat16, as on a GPU
    run(tmp_path, bases["dense"], steps=1, dtype="bfloat16", method="qlora", dora=True)
    assert dtypes[0] == ({torch.float32}, {torch.bfloat16, torch.uint8})
    assert dtypes[1][0] == {torch.float32}
    magnitudes = [value for name, value in starts[0].items() if "magnitude" in name]
    assert any(not torch.equal(value, value.bfloat16().float()) for value in magnitudes)  # bfloat16 would have cut them


def test_a_frozen_base_is_bfloat16_and_its_adapter_float32(bases):
    precision = choose_precision("bfloat16", "cpu", fast_bfloat16=True)
    for spec in (AdapterSpec(), AdapterSpec(dora=True), AdapterSpec(target_modules=("q_proj",), rslora=True)):
        model = adapters.add_adapter(load_base(bases["dense"], "lora", precision, "sdpa"), spec, NO_START)
        by_training = {value.requires_grad: value.dtype for value in model.parameters()}
        assert by_training == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize(("method", "initialisation"), [("lora", "zero"), ("qlora", "zero"), ("lora", "pissa")])
def test_dora_starts_at_its_base_even_in_bfloat16(tmp_path, bases, method, initialisation):
    precision = Precision("cpu", torch.bfloat16, frozen=torch.bfloat16, autocast=None)
    base = load_base(bases["dense"], method, precision, "sdpa")
    spec = AdapterSpec(method=method, dora=True, initialisation=initialisation)
    model = adapters.add_adapter(base, spec, tmp_path / "start")
    for _, layer in adapters.lora_layers(model):
        hidden = torch.randn(5, layer.in_features)
        whole = dequantize_module_weight(layer.get_base_layer()).float() + layer.get_delta_weight("default")
        magnitude = layer.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(magnitude, whole.norm(dim=1), rtol=1e-6, atol=0)
        assert not torch.equal(magnitude, magnitude.bfloat16().float())
        extra = layer(hidden.bfloat16()).float() - hidden.bfloat16().float() @ whole.T
        assert extra.abs().max() < 2**-6 * (hidden @ whole.T).abs().max()  # two roundings to bfloat16


def test_coverage_counts_parameters_and_not_bytes(bases):
    precision = choose_precision("bfloat16", "cpu", fast_bfloat16=True)
    base = load_base(bases["mixture"], "qlora", precision, "sdpa")
    spec = AdapterSpec(method="qlora", target_modules=("q_proj",), target_parameters=(EXPERTS[0],))
    lines = {line.module: line for line in coverage(adapters.add_adapter(base, spec, NO_START))}
    assert (lines["q_proj"].adapted, lines["q_proj"].total, lines["q_proj"].parameters) == (2, 2, 2 * 64 * 64)
    assert (lines["q_proj"].adapted_share, lines["q_proj"].quantised_share) == (1.0, 1.0)
    assert (lines["v_proj"].adapted_share, lines["v_proj"].quantised_share) == (0.0, 1.0)
    assert (lines["experts.gate_up_proj"].parameters, lines["experts.gate_up_proj"].adapted) == (2 * 4 * 64 * 64, 2)
    assert (lines["experts.gate_up_proj"].quantised_share, lines["experts.down_proj"].adapted) == (0.0, 0)
    assert lines["lm_head"].quantised_share == 0.0


def test_an_adapter_that_peft_did_not_place_fails_before_the_training(bases):
    precision = choose_precision("float32", "cpu", fast_bfloat16=False)
    base = load_base(bases["dense"], "lora", precision, "sdpa")
    available = adapters.adaptable(base)
    model = adapters.add_adapter(base, AdapterSpec(target_modules=("q_proj",)), NO_START)
    with pytest.raises(UserError, match=r"peft passed by model\.layers\.0\.self_attn\.v_proj.*2 in all") as error:
        adapters.check_targets(model, AdapterSpec(target_modules=("v_proj",)), available)
    assert "adapted unasked model.layers.0.self_attn.q_proj" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.input_layernorm\.weight is missing.*9 tensors"),
        ({"intermediate_size": 96}, r"_proj\.weight is \(.*128.*\) and not \(.*96.*\).*6 tensors"),
    ],
)
def test_weights_of_another_model_are_refused_and_not_filled_with_random_numbers(tmp_path, change, message):
    base = make_tiny_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_base(base, "lora", choose_precision("float32", "cpu", fast_bfloat16=False), "sdpa")


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, bases):
    def weights(name, seed):
        result = run(tmp_path / name, bases["dense"], training={"seed": seed}, dropout=0.1)
        return load_file(result.job.out_dir / Adapter.WEIGHTS / SAFETENSORS)

    one, same, other = weights("one", 5), weights("same", 5), weights("other", 6)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_how_a_step_of_a_mixture_is_cut_changes_nothing(tmp_path, bases):
    found = []
    for name, cut in (("whole", {}), ("cut", {"micro_batch_rows": 2, "accumulation_steps": 4})):
        prepared = make_preferences(tmp_path / name / "prepared", bases["mixture"], "preference")
        plan = make_plan(tmp_path / name / "plan", optimizer_steps=4, **cut)
        inputs = {"base": bases["mixture"], "prepared": prepared, "plan": plan}
        job = make_job("train", tmp_path / name / "train", inputs, adapter={"target_parameters": EXPERTS})
        # Before its first step the model is its reference: no balance term of the router stands beside ln 2.
        assert train(job, ignore).first_loss == pytest.approx(math.log(2), abs=1e-6)
        found.append(load_file(job.out_dir / Adapter.WEIGHTS / SAFETENSORS))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4)
