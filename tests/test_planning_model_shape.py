import json
import math
from pathlib import Path

import numpy as np
import pytest
from planning_cases import LLAMA2_7B, TINY
from safetensors.numpy import save_file
from tiny_model import make_tiny_base
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
        ({"quantization_config": {"bits": 4}}, "quantised already"),
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
