"""Every shipped config is valid, and none is missed."""

import re
from pathlib import Path

import pytest

from tuneline.contracts.spec_loading import load_spec

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"), key=lambda path: path.stem)


def test_there_are_nine_configs() -> None:
    assert [path.stem for path in CONFIGS] == [
        "banking77",
        "gsm8k-qlora",
        "llama31-8b-qlora-a100",
        "llama33-70b-qlora-8xa100",
        "preferences-dpo",
        "quickstart",
        "quickstart-forgets",
        "qwen3-8b-lora-a100",
        "smollm2-135m-lora",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_its_file_is_named_after_it(path: Path) -> None:
    assert path.stem.startswith(load_spec(path).name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_says_how_to_run_it(path: Path) -> None:
    assert re.search(rf"tuneline run +configs/{re.escape(path.name)}", path.read_text(encoding="utf-8"))


def test_the_forgetting_quickstart_differs_only_in_replay() -> None:
    keeps, forgets = (load_spec(path).model_dump() for path in CONFIGS if path.stem.startswith("quickstart"))
    without_replay = {**keeps["data"], "replay": None, "replay_share": 0.0}
    assert {**keeps, "name": "quickstart-forgets", "data": without_replay} == forgets


def test_the_four_configs_for_real_use_name_their_hardware() -> None:
    budgets = {path.stem: load_spec(path).budget for path in CONFIGS}
    assert {name: (budgets[name].gpu, budgets[name].gpus) for name in budgets if "a100" in name} == {
        "llama31-8b-qlora-a100": ("A100-80GB", 1),
        "llama33-70b-qlora-8xa100": ("A100-80GB", 8),
        "qwen3-8b-lora-a100": ("A100-80GB", 1),
    }
