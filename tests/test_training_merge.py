import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes import functional as bnb
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_model import make_job, make_plan, make_prepared, make_tiny_base, put_record
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import nf4, shards
from training.certificate import (
    MAX_MEAN_KL,
    MIN_TOP1_AGREEMENT,
    certify,
    check_limits,
    compare,
    load_trained,
    scoring_precision,
)
from training.errors import MergeFailed
from training.merge import check_stop_tokens, check_tensors, merge, write_companions, write_merged
from training.recipe import Recipe, read_recipe
from training.scoring import answer_logits, answer_nll, read_samples
from training.train import train
from training.updates import LowRankUpdate
from tuneline.contracts.artifacts import Adapter, Certificate, MergedModel, PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import ProgressEvent

FROZEN = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def ignore(_: ProgressEvent) -> None:
    pass


def run_both(root, base, method, dtype="bfloat16", **adapter):
    """Train, merge, and return what both left behind."""
    prepared = make_prepared(root / "prepared", base, held_out_rows=96)
    inputs = {"base": base, "prepared": prepared, "plan": make_plan(root / "plan", optimizer_steps=20)}
    sections = {"model": {"dtype": dtype}, "adapter": {"method": method, **adapter}}
    training = make_job("train", root / "train", inputs, **sections, training={"learning_rate": 5e-3})
    put_record(training.out_dir, "train", train(training, ignore))
    inputs = {"base": base, "prepared": prepared, "adapter": training.out_dir}
    job = make_job("merge", root / "merge", inputs, **sections)
    events: list[ProgressEvent] = []
    merged = merge(job, events.append)
    return SimpleNamespace(
        job=job,
        record=merged,
        events=events,
        base=base,
        adapter=training.out_dir,
        prepared=prepared,
        model=job.out_dir / MergedModel.MODEL,
        recipe=read_recipe(base, training.out_dir),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"), dtype="bfloat16")


@pytest.fixture(scope="module")
def lora(tmp_path_factory, base):
    return run_both(tmp_path_factory.mktemp("lora"), base, "lora")


@pytest.fixture(scope="module")
def qlora(tmp_path_factory, base):
    return run_both(tmp_path_factory.mktemp("qlora"), base, "qlora", target_modules=["q_proj", "v_proj", "up_proj"])


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_merge_equals_pefts_own(tmp_path, rslora):
    base = make_tiny_base(tmp_path / "base", tied=True)
    run = run_both(tmp_path, base, "lora", dtype="float32", rslora=rslora, rank=4, alpha=6)
    live = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(live, run.adapter / Adapter.WEIGHTS).merge_and_unload().state_dict()
    found = tensors(run.model)
    assert "lm_head.weight" not in found  # tied to the embeddings, as in the base
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    assert not torch.equal(
        found["model.layers.0.mlp.up_proj.weight"], tensors(base)["model.layers.0.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_was_not_trained_keeps_its_bytes(request, method):
    run = request.getfixturevalue(method)
    before, after = tensors(run.base), tensors(run.model)
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.bfloat16 for name in after)
    untouched = {name for name in before if torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))}
    assert untouched == FROZEN | {name for name in before if "layernorm" in name}
    assert run.record.certificate.tensors_changed == len(before) - len(untouched)


def test_the_certificate_of_a_lora_merge_holds(lora):
    certificate = lora.record.certificate
    assert certificate.base == "original"
    assert 0 < certificate.mean_kl < MAX_MEAN_KL
    assert certificate.top1_agreement >= MIN_TOP1_AGREEMENT
    assert certificate.samples == 96  # 4 tokens an answer: more than 64 samples for want of tokens
    assert certificate.pairs_used == 14
    assert certificate.tensors_total == 21
    assert certificate.original_base_nll is None
    written = Certificate.model_validate_json((lora.job.out_dir / MergedModel.CERTIFICATE).read_text())
    assert written == certificate
    assert lora.record.bytes == sum(tensor.nbytes for tensor in tensors(lora.model).values())


def test_a_qlora_merge_rests_on_the_dequantised_base_of_every_quantised_module(qlora):
    certificate = qlora.record.certificate
    assert certificate.base == "dequantised"
    assert certificate.mean_kl < MAX_MEAN_KL
    assert certificate.pairs_used == 6
    assert certificate.tensors_changed == 14  # NF4 moved the eight modules that no adapter touched, too
    found, weight = tensors(qlora.model), tensors(qlora.base)["model.layers.1.self_attn.o_proj.weight"]
    assert torch.equal(found["model.layers.1.self_attn.o_proj.weight"], nf4.round_trip(weight))


def test_the_same_adapter_on_the_base_before_nf4_is_another_model(tmp_path, qlora):
    on_original = dataclasses.replace(qlora.recipe, nf4_weights=frozenset())
    write_merged(on_original, tmp_path / "model", ignore)
    write_companions(on_original, qlora.prepared / PreparedData.TOKENIZER, tmp_path / "model")
    with pytest.raises(MergeFailed, match="mean KL"):
        certify(qlora.job, qlora.recipe, tmp_path / "model", 6, ignore)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    samples = read_samples(qlora.prepared)
    nll = answer_nll([answer_logits(model, sample) for sample in samples], samples)
    assert qlora.record.certificate.original_base_nll == pytest.approx(nll, abs=1e-3)
    assert nll != pytest.approx(qlora.record.certificate.merged_nll, abs=1e-3)


def test_scoring_a_quantised_model_leaves_its_weights_as_they_were(qlora):
    # On a CPU with AVX512-BF16 this fails without `nf4.keep_unpacked`: the layer is repacked and gives back noise.
    model = load_trained(qlora.job, qlora.recipe, "qlora", scoring_precision(qlora.recipe))
    sample = read_samples(qlora.prepared)[0]
    first, second = answer_logits(model, sample), answer_logits(model, sample)
    assert torch.equal(first, second)
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    live = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(live, nf4.round_trip(tensors(qlora.base)["model.layers.0.self_attn.o_proj.weight"]))


def test_a_full_training_is_cast_once(tmp_path, base):
    run = run_both(tmp_path, base, "full")
    trained, merged = tensors(run.adapter / Adapter.WEIGHTS), tensors(run.model)
    assert all(torch.equal(merged[name], trained[name].bfloat16()) for name in merged)
    assert run.record.certificate.base == "none"
    assert run.record.certificate.pairs_used == 0
    assert run.record.certificate.mean_kl < MAX_MEAN_KL


def test_a_wrong_scale_is_caught(tmp_path, lora):
    def rescaled(update: LowRankUpdate) -> LowRankUpdate:
        return dataclasses.replace(update, up=update.up * 1.5)

    wrong = dataclasses.replace(
        lora.recipe, updates={name: rescaled(update) for name, update in lora.recipe.updates.items()}
    )
    write_merged(wrong, tmp_path / "model", ignore)
    write_companions(wrong, lora.prepared / PreparedData.TOKENIZER, tmp_path / "model")
    assert check_tensors(lora.recipe, tmp_path / "model")  # the right tensors changed: only the figures can tell
    with pytest.raises(MergeFailed, match=r"mean KL .* limit 1e-04"):
        certify(lora.job, lora.recipe, tmp_path / "model", 14, ignore)


def test_a_dropped_pair_is_caught(tmp_path, lora):
    dropped = "model.layers.1.mlp.up_proj.weight"
    kept = {name: update for name, update in lora.recipe.updates.items() if name != dropped}
    write_merged(dataclasses.replace(lora.recipe, updates=kept), tmp_path / "model", ignore)
    with pytest.raises(MergeFailed, match=f"1 of 14 updates are lost .*{dropped}"):
        check_tensors(lora.recipe, tmp_path / "model")


def test_a_merge_that_equals_the_base_is_caught(lora):
    with pytest.raises(MergeFailed, match="14 of 14 updates are lost"):
        check_tensors(lora.recipe, lora.base)


def test_an_adapter_that_never_moved_may_equal_the_base(lora):
    unmoved = {
        name: dataclasses.replace(update, up=torch.zeros_like(update.up))
        for name, update in lora.recipe.updates.items()
    }
    assert check_tensors(dataclasses.replace(lora.recipe, updates=unmoved), lora.base) == frozenset()


@pytest.mark.parametrize("fault", ["touched", "missing", "reshaped"])
def test_a_tensor_that_training_did_not_touch_must_be_there_unchanged(tmp_path, lora, fault):
    shutil.copytree(lora.model, tmp_path / "model")
    found = tensors(lora.model)
    match fault:
        case "touched":
            found["lm_head.weight"][0, 0] += 1
        case "missing":
            del found["lm_head.weight"]
        case "reshaped":
            found["lm_head.weight"] = found["lm_head.weight"][:-1].contiguous()
    save_file(found, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeFailed, match=r"lm_head\.weight"):
        check_tensors(lora.recipe, tmp_path / "model")


def test_an_update_without_a_weight_to_be_added_to_is_caught(tmp_path, lora):
    shutil.copytree(lora.base, tmp_path / "base")
    renamed = {name.replace("up_proj", "w1"): tensor for name, tensor in tensors(lora.base).items()}
    save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeFailed, match="2 updates have no weight"):
        read_recipe(tmp_path / "base", lora.adapter)


def test_the_model_folder_is_what_a_server_reads(lora):
    config = json.loads((lora.model / "config.json").read_text())
    assert config["dtype"] == lora.record.dtype == "bfloat16"
    assert str(lora.base) not in (lora.model / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(lora.model)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(lora.base).chat_template
    assert json.loads((lora.model / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.eos_token_id]
    assert AutoModelForCausalLM.from_pretrained(lora.model).dtype == torch.bfloat16
    assert lora.record.stop_token_ids == (tokenizer.eos_token_id,)


def test_a_generation_config_that_misses_a_stop_token_is_caught(lora):
    with pytest.raises(MergeFailed, match=r"misses \[9\]"):
        check_stop_tokens(lora.model, (1, 9))


def test_progress_counts_the_tensors_and_then_the_scored_samples(lora):
    assert [event.done for event in lora.events if event.unit == "tensors"] == [21]
    scored = [event for event in lora.events if event.unit == "samples"]
    assert (scored[-1].done, scored[-1].planned) == (192, 192)


def test_a_base_without_safetensors_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        shards.places_of(tmp_path)


def test_shards_beyond_the_limit_are_split_and_load_as_one_model(tmp_path, lora):
    recipe: Recipe = lora.recipe
    layout = shards.plan_layout(recipe.places, recipe.dtype.itemsize, limit_bytes=60_000)
    assert sorted(name for names in layout.values() for name in names) == sorted(recipe.places)
    assert next(iter(layout)) == f"model-00001-of-{len(layout):05d}.safetensors"
    found = tensors(lora.model)
    shards.write_model(tmp_path, layout, found.__getitem__, lambda _: None)
    assert all(path.stat().st_size < 62_000 for path in tmp_path.glob("*.safetensors"))
    write_companions(recipe, lora.prepared / PreparedData.TOKENIZER, tmp_path)
    assert check_tensors(recipe, tmp_path) == check_tensors(recipe, lora.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], found[name]) for name in found)
    # Read as a base, its layout is kept.
    assert shards.plan_layout(shards.places_of(tmp_path), recipe.dtype.itemsize) == layout


def test_kl_top1_and_loss_are_computed_over_tokens():
    certain = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    even = torch.tensor([[0.0, 0.0]])
    agreement = compare([certain, even], [certain, torch.tensor([[0.0, 1.0]])])
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor([0.0, 1.0]), 0), torch.tensor([0.5, 0.5]), reduction="sum"
    )
    assert agreement.tokens == 3
    assert agreement.mean_kl == pytest.approx(float(kl) / 3)
    assert agreement.top1_agreement == pytest.approx(2 / 3)


def test_a_failed_certificate_names_every_figure_that_is_off():
    agreement = compare([torch.tensor([[5.0, 0.0]] * 2)], [torch.tensor([[0.0, 5.0]] * 2)])
    with pytest.raises(MergeFailed) as error:
        check_limits(agreement, trained_nll=1.0, merged_nll=1.01)
    message = str(error.value)
    assert "mean KL" in message
    assert "same top token at 0.00% of positions" in message
    assert "loss 1.0000 became 1.0100 (1.00%), limit 0.5%" in message
    with pytest.raises(MergeFailed, match="loss"):
        check_limits(compare([torch.zeros(1, 2)], [torch.zeros(1, 2)]), trained_nll=1.0, merged_nll=float("nan"))


def test_a_single_near_tie_among_few_positions_is_granted_and_a_second_is_not():
    trained = torch.tensor([[0.001, 0.0]] * 40)
    flipped = trained.clone()
    flipped[0] = torch.tensor([0.0, 0.001])
    check_limits(compare([trained], [flipped]), trained_nll=1.0, merged_nll=1.0)
    flipped[1] = torch.tensor([0.0, 0.001])
    with pytest.raises(MergeFailed, match=r"same top token at 95\.00% of positions, limit 97\.50%"):
        check_limits(compare([trained], [flipped]), trained_nll=1.0, merged_nll=1.0)
