"""The champion moves only from the version that the gate compared with, and can go back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_requests import registration

from tuneline.contracts.errors import UserError
from tuneline.registry.aliases import champion, journal, promote, rollback, set_challenger
from tuneline.registry.connection import Registry
from tuneline.registry.tracking import start_run
from tuneline.registry.versions import record_image, register, versions

pytest_plugins = ["registry_fixtures"]


def register_versions(registry: Registry, folder: Path, name: str, count: int) -> None:
    run_id = start_run(registry, "aliases", "demo", "6666", {}).run_id
    for number in range(1, count + 1):
        register(registry, registration(folder, name, run_id, fingerprint=f"{name}-{number}"))


def holders(registry: Registry, name: str) -> dict[str, tuple[str, ...]]:
    return {info.version: info.aliases for info in versions(registry, name) if info.aliases}


def test_promotions_move_champion_and_previous_and_are_written_down(registry: Registry, tmp_path: Path) -> None:
    register_versions(registry, tmp_path, "steps", 2)
    assert champion(registry, "steps") is None
    set_challenger(registry, "steps", "1")
    assert holders(registry, "steps") == {"1": ("challenger",)}

    first = promote(registry, "steps", "1", expected_champion=None, who="ada", why="gate")
    assert (first.moved, first.champion_version, first.previous_version) == (True, "1", None)
    assert holders(registry, "steps") == {"1": ("champion",)}

    second = promote(registry, "steps", "2", expected_champion="1", who="bob", why="better by 4 points")
    assert (second.moved, second.champion_version, second.previous_version) == (True, "2", "1")
    serving = champion(registry, "steps")
    assert serving is not None
    assert (serving.version, serving.merged_sha256, serving.aliases) == ("2", "3e" * 32, ("champion",))
    entries = journal(registry, "steps")
    assert [(entry.action, entry.who, entry.from_version, entry.to_version) for entry in entries] == [
        ("promote", "ada", None, "1"),
        ("promote", "bob", "1", "2"),
    ]
    assert entries[1].why == "better by 4 points"


def test_a_champion_that_moved_meanwhile_stops_the_promotion(local_registry: Registry, tmp_path: Path) -> None:
    register_versions(local_registry, tmp_path, "overtaken", 3)
    promote(local_registry, "overtaken", "1", None, "ada", "gate")
    promote(local_registry, "overtaken", "2", "1", "ada", "gate")
    late = promote(local_registry, "overtaken", "3", "1", "bob", "gate")
    assert (late.moved, late.champion_version) == (False, "2")
    assert late.reason == (
        "version 3 was compared with version 1, but now the champion is version 2: evaluate it again"
    )
    assert holders(local_registry, "overtaken") == {"1": ("previous",), "2": ("champion",)}
    assert len(journal(local_registry, "overtaken")) == 2


def test_promoting_the_champion_again_changes_nothing(local_registry: Registry, tmp_path: Path) -> None:
    register_versions(local_registry, tmp_path, "again", 1)
    promote(local_registry, "again", "1", None, "ada", "gate")
    again = promote(local_registry, "again", "1", None, "ada", "gate")
    assert (again.moved, again.reason) == (False, "version 1 is the champion already")
    set_challenger(local_registry, "again", "1")
    assert holders(local_registry, "again") == {"1": ("champion",)}
    assert len(journal(local_registry, "again")) == 1


def test_of_eight_promotions_at_once_exactly_one_moves(registry: Registry, tmp_path: Path) -> None:
    register_versions(registry, tmp_path, "race", 9)
    promote(registry, "race", "9", None, "ada", "gate")

    def contend(version: int) -> bool:
        return promote(registry, "race", str(version), expected_champion="9", who="racer", why="gate").moved

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(contend, range(1, 9)))
    assert sum(moved) == 1
    winner = str(moved.index(True) + 1)
    assert holders(registry, "race") == {winner: ("champion",), "9": ("previous",)}
    assert [entry.to_version for entry in journal(registry, "race")] == ["9", winner]


def test_a_promotion_killed_half_way_serves_the_old_champion_and_is_finished_by_the_same_call(
    local_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_versions(local_registry, tmp_path, "half", 2)
    promote(local_registry, "half", "1", None, "ada", "gate")
    set_alias = local_registry.mlflow.set_registered_model_alias

    def killed_at_champion(name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        set_alias(name, alias, version)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_registry.mlflow, "set_registered_model_alias", killed_at_champion)
        promote(local_registry, "half", "2", "1", "ada", "gate")
    assert holders(local_registry, "half") == {"1": ("champion", "previous")}
    with pytest.raises(UserError, match="no previous champion"):
        rollback(local_registry, "half", "ada", "nothing to go back to")
    assert promote(local_registry, "half", "2", "1", "ada", "gate").moved
    assert holders(local_registry, "half") == {"1": ("previous",), "2": ("champion",)}


def test_a_writer_that_went_around_the_lock_is_noticed(
    local_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_versions(local_registry, tmp_path, "around", 2)
    set_alias = local_registry.mlflow.set_registered_model_alias

    def overwritten(name: str, alias: str, version: str) -> None:
        set_alias(name, alias, version)
        set_alias(name, alias, "2")

    monkeypatch.setattr(local_registry.mlflow, "set_registered_model_alias", overwritten)
    release = promote(local_registry, "around", "1", None, "ada", "gate")
    assert (release.moved, release.champion_version) == (False, "2")
    assert "someone else moved the champion" in release.reason


def test_a_rollback_swaps_the_aliases_and_names_the_image_to_deploy(registry: Registry, tmp_path: Path) -> None:
    register_versions(registry, tmp_path, "back", 2)
    record_image(registry, "back", "1", "sha256:aa", "tuneline/back:1")
    promote(registry, "back", "1", None, "ada", "gate")
    promote(registry, "back", "2", "1", "ada", "gate")

    back = rollback(registry, "back", who="eve", why="answers in French")
    assert (back.moved, back.champion_version, back.previous_version) == (True, "1", "2")
    assert back.reason == "rolled back from version 2 to 1; deploy tuneline/back:1@sha256:aa"
    assert journal(registry, "back")[-1].why == "answers in French"

    forth = rollback(registry, "back", who="eve", why="it was the client")
    assert forth.champion_version == "2"
    assert "version 2 has no image on record" in forth.reason


def test_what_cannot_be_rolled_back_or_promoted_is_said_to_the_user(local_registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model `nope` is registered"):
        rollback(local_registry, "nope", "ada", "why not")
    with pytest.raises(UserError, match="no model `nope` is registered"):
        promote(local_registry, "nope", "1", None, "ada", "gate")
    assert champion(local_registry, "nope") is None
    register_versions(local_registry, tmp_path, "single", 1)
    promote(local_registry, "single", "1", None, "ada", "gate")
    with pytest.raises(UserError, match="model `single` has no previous champion"):
        rollback(local_registry, "single", "ada", "why not")
    with pytest.raises(UserError, match="has no version 5"):
        promote(local_registry, "single", "5", "1", "ada", "gate")
