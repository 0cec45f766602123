import json
import math
from pathlib import Path

import numpy as np
import pytest
from planning_cases import LLAMA2_7B, TINY
from safetensors.numpy import save_file
from tiny_model import make_tiny_base
from tiny_moe import make_tiny_moe
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen3Config

from tuneline.contracts.errors import UserError
from tuneline.planning.known_models import shape_of_known
from tuneline.planning.model_shape import shape_from_config, shape_of_folder


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
    ],
)
def test_known_models_have_their_published_parameter_counts(name: str, parameters: int) -> None:
    assert shape_of_known(name).parameters == parameters


def test_matmul_weights_of_llama_8b_leave_the_embedding_table_out() -> None:
    shape = shape_of_known("meta-llama/Llama-3.1-8B")
    assert shape.linear_parameters == 6_979_321_856
    assert shape.matmul_parameters == shape.linear_parameters + 128_256 * 4096


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_has_the_shape_that_transformers_builds_from_it(tmp_path: Path, tied: bool) -> None:
    folder = make_tiny_base(tmp_path / "base", tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = shape_of_folder(folder)
    head = model.get_output_embeddings()
    inside = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    assert shape.parameters == model.num_parameters()
    assert shape.linear_parameters == sum(module.weight.numel() for module in inside)
    assert sum(linear.count for linear in shape.linears) == len(inside)
    q_proj = next(linear for linear in shape.linears if linear.name == "q_proj")
    assert (q_proj.in_features, q_proj.out_features, q_proj.count) == (64, 64, 2)


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_analytic_tensors_are_those_that_transformers_makes(config_class: type) -> None:
    config = config_class(**{key: value for key, value in TINY.items() if key != "model_type"}, head_dim=32)
    model = AutoModelForCausalLM.from_config(config)
    assert shape_from_config("tiny", config.to_dict()).parameters == model.num_parameters()


def test_a_folder_without_weights_is_counted_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA2_7B))
    assert shape_of_folder(tmp_path).parameters == 6_738_415_616


def test_only_headers_are_read(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    whole = shape_of_folder(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    data_starts = 8 + int.from_bytes(content[:8], "little")
    content[data_starts:] = b"\xff" * (len(content) - data_starts)
    weights.write_bytes(content)
    assert shape_of_folder(folder) == whole


def test_shards_are_added_up(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in TINY.items() if key != "model_type"}))
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert shape_of_folder(tmp_path).parameters == model.num_parameters()


def test_a_tied_head_that_is_stored_as_well_is_counted_once(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base", tied=True)
    once = shape_of_folder(folder)
    head = {"lm_head.weight": np.zeros((once.vocab_size, once.hidden_size), dtype=np.float32)}
    save_file(head, folder / "model-head.safetensors")
    assert shape_of_folder(folder) == once


def test_damaged_weights_name_their_file(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: math.floor(weights.stat().st_size / 2)])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged weights"):
        shape_of_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 8}, "mixture of experts"),
        ({"quantization_config": {"bits": 4}}, r"quantised already \(quantization_config in config\.json\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised already \(gptq\)"),
        ({"quantization_config": {"quant_method": "fp8"}, "text_config": TINY}, r"quantised already \(fp8\)"),
        ({"model_type": "mamba"}, "model_type `mamba` cannot be counted"),
        ({"vocab_size": None}, "`vocab_size` is None"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_reason(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shape_from_config("some/model", {**TINY, **change})


def test_an_unknown_hub_name_says_how_to_get_its_shape() -> None:
    with pytest.raises(UserError, match=r"did you mean Qwen/Qwen3-8B\?.*hf download Qwen/Qwen3-80B"):
        shape_of_known("Qwen/Qwen3-80B")


def test_a_mixture_has_the_modules_that_transformers_makes_of_its_files(tmp_path: Path) -> None:
    folder = make_tiny_moe(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = shape_of_folder(folder)
    assert shape.parameters == model.num_parameters()
    head = model.get_output_embeddings()
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    assert set(shape.adaptable.linears) == linears
    fused = {name: weight for name, weight in model.named_parameters() if weight.dim() == 3}
    assert set(shape.adaptable.fused) == set(fused)
    for weight in shape.fused:
        assert (weight.experts, weight.out_features, weight.in_features) == tuple(fused[weight.path].shape)
    on_disk = shape_of_folder(make_tiny_moe(tmp_path / "fused", fused_files=True))
    assert sorted(on_disk.fused, key=str) == sorted(shape.fused, key=str)
    # A token passes through the attention, two of four experts and the head.
    active = shape.fused_parameters // 2
    assert shape.matmul_parameters == shape.linear_parameters + active + shape.hidden_size * shape.vocab_size
    assert shape.mlp_size == 2 * 32


def test_mixtrals_names_are_those_that_transformers_gives_them() -> None:
    block = "model.layers.0.block_sparse_moe"
    tensors = {f"{block}.experts.{n}.{name}.weight": (8, 4) for n in range(3) for name in ("w1", "w3")}
    tensors |= {f"{block}.experts.{n}.w2.weight": (4, 8) for n in range(3)} | {f"{block}.gate.weight": (3, 4)}
    config = {**TINY, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}
    shape = shape_from_config("mixtral", config, tensors)
    assert {(weight.path, weight.experts, weight.in_features, weight.out_features) for weight in shape.fused} == {
        ("model.layers.0.mlp.experts.gate_up_proj", 3, 4, 16),
        ("model.layers.0.mlp.experts.down_proj", 3, 8, 4),
    }
    assert shape.linears == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.self_attn\.q_proj\.weight is missing.*9 tensors"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.\S+ belongs to no layer.*9 tensors"),
        ({"intermediate_size": 96}, r"gate_proj\.weight is \(128, 64\) and not \(96, 64\).*6 tensors"),
        ({"vocab_size": 7}, r"embed_tokens\.weight is \(320, 64\) and not \(7, 64\)"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    folder = make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as error:
        shape_of_folder(folder)
    assert "same model together" in str(error.value)
