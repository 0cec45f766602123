"""What makes a stage run again, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest

from flows import identity
from tuneline.contracts.spec import RunSpec
from tuneline.planning.hardware import Machine

SOURCES = {"train": "aa", "held_out": "bb"}
MACHINE = Machine(cores=2, available_memory_bytes=17 << 30, has_bfloat16=True)


def spec(**sections: dict[str, Any]) -> RunSpec:
    base: dict[str, Any] = {"name": "t", "model": {"base": "b"}, "data": {"train": "rows.csv", "held_out": "held.csv"}}
    for section, fields in sections.items():
        base[section] = {**base.get(section, {}), **fields}
    return RunSpec.model_validate(base)


IDENTITIES: dict[str, Callable[[RunSpec], str]] = {
    "prepare": lambda spec: identity.prepare_identity(spec, "base", SOURCES),
    "plan": lambda spec: identity.plan_identity(spec, "p", MACHINE),
    "train": lambda spec: identity.train_identity(spec, "base", "p"),
    "merge": lambda spec: identity.merge_identity(spec, "a"),
    "evaluate": lambda spec: identity.evaluate_identity(spec, "p", "m", None),
    "decide": lambda spec: identity.decide_identity(spec, "e"),
    "package": lambda spec: identity.package_identity(spec, "m", "sha256:1"),
}

CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"data": {"train": "elsewhere/rows.csv"}}, set()),
    ({"training": {"checkpoint_every_optimizer_steps": 7, "log_every_optimizer_steps": 1}}, {"plan"}),
    ({"registry": {"experiment": "other"}}, set()),
    ({"serving": {"base_image": "another/name:1"}}, set()),
    ({"data": {"max_length_tokens": 99}}, {"prepare"}),
    ({"training": {"learning_rate": 1e-3}}, {"plan", "train"}),
    ({"adapter": {"rank": 8}}, {"plan", "train"}),
    ({"model": {"dtype": "float32"}}, {"plan", "train", "merge"}),
    ({"evaluation": {"max_new_tokens": 9}}, {"evaluate"}),
    ({"gate": {"confidence": 0.9}}, {"decide"}),
    ({"serving": {"max_model_len": 99}}, {"evaluate", "package"}),
    ({"serving": {"enforce_eager": True}}, {"package"}),
    ({"budget": {"gpu": "H100"}}, {"plan"}),
]


@pytest.mark.parametrize(("change", "again"), CHANGES, ids=lambda value: str(value))
def test_a_change_of_the_config_makes_just_the_stages_run_that_read_it(change: dict[str, Any], again: set[str]) -> None:
    before, after = spec(), spec(**change)
    assert {stage for stage, key in IDENTITIES.items() if key(before) != key(after)} == again


def test_changed_bytes_of_a_source_are_another_data_set() -> None:
    changed = {**SOURCES, "train": "cc"}
    assert identity.prepare_identity(spec(), "base", SOURCES) != identity.prepare_identity(spec(), "base", changed)


def test_a_new_champion_is_a_new_evaluation() -> None:
    keys = {identity.evaluate_identity(spec(), "p", "m", champion) for champion in (None, "c1", "c2")}
    assert len(keys) == 3


def test_a_plan_is_about_the_machine_and_ignores_small_changes_of_free_memory() -> None:
    keys = [
        identity.plan_identity(spec(), "p", Machine(cores=cores, available_memory_bytes=gib << 30, has_bfloat16=True))
        for cores, gib in ((2, 17), (2, 18), (2, 30), (4, 17))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
