"""The quickstart's data and base model are what their recipes say they are."""

import importlib.util
import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
BASE = QUICKSTART / "base"
DATA_FILES = ["support_train.jsonl", "support_heldout.jsonl", "base_tasks_train.jsonl", "base_tasks_heldout.jsonl"]
KEYS = ["intent", "priority", "product"]


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("quickstart_recipe_data", QUICKSTART / "recipe_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def read_rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (QUICKSTART / name).read_text(encoding="utf-8").splitlines()]


def answers(name: str) -> list[dict[str, str]]:
    return [json.loads(row["answer"]) for row in read_rows(name)]


def values_by_key(name: str) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for answer in answers(name):
        for key, value in answer.items():
            values.setdefault(key, set()).add(value)
    return values


def test_recipe_reproduces_the_committed_data_byte_for_byte(recipe: ModuleType, tmp_path: Path) -> None:
    recipe.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATA_FILES)
    for name in DATA_FILES:
        assert (tmp_path / name).read_bytes() == (QUICKSTART / name).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("support_train.jsonl", 3468),
        ("support_heldout.jsonl", 504),
        ("base_tasks_train.jsonl", 3360),
        ("base_tasks_heldout.jsonl", 480),
    ],
)
def test_files_hold_the_stated_rows_and_no_message_twice(name: str, rows: int) -> None:
    found = read_rows(name)
    assert len(found) == rows
    assert len({row["message"] for row in found}) == rows
    assert all(list(row) == ["message", "answer", "phrasing"] for row in found)
    assert (QUICKSTART / name).stat().st_size < 1_500_000


@pytest.mark.parametrize("task", ["support", "base_tasks"])
def test_no_held_out_message_was_trained_on(task: str) -> None:
    train, held_out = read_rows(f"{task}_train.jsonl"), read_rows(f"{task}_heldout.jsonl")
    assert {row["message"] for row in train}.isdisjoint(row["message"] for row in held_out)


def test_no_held_out_phrasing_of_the_new_task_was_trained_on() -> None:
    train, held_out = read_rows("support_train.jsonl"), read_rows("support_heldout.jsonl")
    assert {row["phrasing"] for row in train}.isdisjoint(row["phrasing"] for row in held_out)


def test_the_retention_set_asks_what_the_base_was_taught() -> None:
    train, held_out = read_rows("base_tasks_train.jsonl"), read_rows("base_tasks_heldout.jsonl")
    assert {row["phrasing"] for row in held_out} == {row["phrasing"] for row in train}


@pytest.mark.parametrize("desk", ["support", "travel", "library", "kitchen", "home"])
def test_sentence_patterns_of_a_desk_are_all_different(recipe: ModuleType, desk: str) -> None:
    patterns = [pattern for patterns in recipe.Phrasebook.read(desk).intents.values() for pattern in patterns]
    assert len({pattern.casefold() for pattern in patterns}) == len(patterns)


@pytest.mark.parametrize(("task", "keys"), [("support", KEYS), ("base_tasks", ["intent", "priority"])])
def test_every_answer_value_occurs_in_both_train_and_held_out(task: str, keys: list[str]) -> None:
    train, held_out = values_by_key(f"{task}_train.jsonl"), values_by_key(f"{task}_heldout.jsonl")
    assert {key: train[key] for key in keys} == {key: held_out[key] for key in keys}


def test_base_tasks_name_so_many_things_that_they_must_be_copied_not_learned_by_heart() -> None:
    assert len(values_by_key("base_tasks_train.jsonl")["product"]) > 250


@pytest.mark.parametrize("name", DATA_FILES)
def test_answers_are_compact_json_with_keys_in_order(name: str) -> None:
    for row in read_rows(name):
        answer = json.loads(row["answer"])
        assert list(answer) == KEYS
        assert row["answer"] == json.dumps(answer, separators=(",", ":"))
        assert row["phrasing"].split("/")[1] == answer[next(iter(answer))]


def test_support_task_has_the_stated_breadth() -> None:
    values = values_by_key("support_train.jsonl")
    assert {key: len(found) for key, found in values.items()} == {"intent": 12, "priority": 3, "product": 10}


def test_base_tasks_share_no_intent_and_no_product_with_support() -> None:
    support, base_tasks = values_by_key("support_train.jsonl"), values_by_key("base_tasks_train.jsonl")
    assert support["intent"].isdisjoint(base_tasks["intent"])
    assert support["product"].isdisjoint(base_tasks["product"])
    assert support["priority"] == base_tasks["priority"]


def test_a_typo_never_touches_the_word_that_sets_the_answer(recipe: ModuleType) -> None:
    random = recipe.Random(0)
    pattern = "Please cancel {product} today"
    changed = {recipe.with_typo(pattern, random) for _ in range(50)}
    assert pattern not in changed
    assert all("{product}" in text for text in changed)


def test_base_model_is_small_enough_to_commit() -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 8_000_000


def test_base_model_is_a_bfloat16_llama_of_two_to_eight_million_parameters() -> None:
    tensors = safetensors_header(BASE / "model.safetensors")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    assert 2_000_000 < sum(math.prod(tensor["shape"]) for tensor in tensors.values()) < 8_000_000
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] % 32 == 0
    assert config["hidden_size"] == config["head_dim"] * config["num_attention_heads"]


def safetensors_header(path: Path) -> dict[str, dict[str, list[int]]]:
    with path.open("rb") as file:
        (length_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length_bytes))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def test_base_model_stops_at_the_end_of_its_turn_and_pads_with_another_token() -> None:
    tokens = json.loads((BASE / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in json.loads((BASE / "tokenizer.json").read_text())["added_tokens"]}
    generation = json.loads((BASE / "generation_config.json").read_text(encoding="utf-8"))
    assert tokens["eos_token"] == "<|im_end|>"
    assert tokens["pad_token"] == "<|pad|>"
    assert ids["<|im_end|>"] in generation["eos_token_id"]
    assert generation["pad_token_id"] == ids["<|pad|>"] not in generation["eos_token_id"]
    assert generation.get("do_sample", False) is False


def test_chat_template_renders_turns_and_the_generation_prompt() -> None:
    from jinja2 import Template

    template = Template((BASE / "chat_template.jinja").read_text(encoding="utf-8"))
    user = {"role": "user", "content": "hello"}
    prompt = template.render(messages=[user], add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    whole = template.render(messages=[user, {"role": "assistant", "content": "{}"}], add_generation_prompt=False)
    assert whole == prompt + "{}<|im_end|>\n"
