"""Which version serves: the aliases `champion`, `previous` and `challenger`.

MLflow's aliases are last-writer-wins. A move is therefore made under a lock, compared with the champion that the
caller judged against, written down in the version's journal before anything moves, and read back.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from tuneline.contracts.artifacts import Record, Release
from tuneline.contracts.errors import UserError
from tuneline.registry.connection import Registry
from tuneline.registry.versions import VersionInfo, find_model, no_such_model, version_info, versions

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

JOURNAL_PREFIX: Final = "tuneline.journal."
Action = Literal["promote", "rollback"]


class Alias(StrEnum):
    """Names of the aliases (MLflow reserves `latest` and `v<number>`)."""

    CHAMPION = "champion"
    """Serves."""
    PREVIOUS = "previous"
    """Served before it; a rollback goes there."""
    CHALLENGER = "challenger"
    """Passed the gate and is not the champion yet."""


class JournalEntry(Record):
    """A move of the champion, noted before it was made."""

    when: str
    action: Action
    who: str
    why: str
    from_version: str | None
    to_version: str


def champion(registry: Registry, name: str) -> VersionInfo | None:
    """Describe the version that serves; None when there is no champion or no such model."""
    with registry.calls() as client:
        holders = _holders(client, name)
    version = holders.get(Alias.CHAMPION)
    return version_info(registry, name, version) if version else None


def set_challenger(registry: Registry, name: str, version: str) -> None:
    """Point `challenger` at a version that passed the gate; the champion does not become its own challenger."""
    version_info(registry, name, version)
    with registry.lock(f"aliases-{name}"), registry.calls() as client:
        if _holders(client, name).get(Alias.CHAMPION) != version:
            client.set_registered_model_alias(name, Alias.CHALLENGER.value, version)


def promote(registry: Registry, name: str, version: str, expected_champion: str | None, who: str, why: str) -> Release:
    """Make a version the champion if the champion is still the one that it was compared with.

    `previous` is written first: killed between the two writes, the old champion still serves and the same call
    finishes the move.

    Args:
        registry: MLflow.
        name: the registered model.
        version: the version to promote.
        expected_champion: the champion that the verdict is about; None when there was none.
        who: who asks, for the journal.
        why: the reason, for the journal.

    Returns:
        Where the aliases stand; `moved` is false when that version is champion already or the champion is another
        than expected.

    Raises:
        UserError: when the model or the version does not exist.
        ServiceUnavailable: when MLflow is away.
    """
    version_info(registry, name, version)
    with registry.lock(f"aliases-{name}"), registry.calls() as client:
        before = _holders(client, name)
        present = before.get(Alias.CHAMPION)
        if present == version:
            return _release(before, moved=False, reason=f"version {version} is the champion already")
        if present != expected_champion:
            return _release(before, moved=False, reason=_overtaken(version, expected_champion, present))
        _note(client, name, _entry("promote", who, why, present, version))
        if present:
            client.set_registered_model_alias(name, Alias.PREVIOUS.value, present)
        client.set_registered_model_alias(name, Alias.CHAMPION.value, version)
        if before.get(Alias.CHALLENGER) == version:
            client.delete_registered_model_alias(name, Alias.CHALLENGER.value)
        return _read_back(client, name, version, f"version {version} is the champion; before it: {present or 'none'}")


def rollback(registry: Registry, name: str, who: str, why: str) -> Release:
    """Swap `champion` and `previous`, and name the image to deploy.

    Here `champion` is written first: killed between the two writes, the version asked for serves.

    Raises:
        UserError: when there is no such model, or nothing to go back to.
        ServiceUnavailable: when MLflow is away.
    """
    with registry.lock(f"aliases-{name}"), registry.calls() as client:
        if find_model(client, name) is None:
            raise no_such_model(name, registry)
        before = _holders(client, name)
        present, target = before.get(Alias.CHAMPION), before.get(Alias.PREVIOUS)
        if target is None or target == present:
            fix = f"promote a version by hand: {_listed(registry, name)}"
            raise UserError.of(f"model `{name}` has no previous champion", f"MLflow at {registry.address}", fix)
        deploy = _deployment(version_info(registry, name, target))
        _note(client, name, _entry("rollback", who, why, present, target))
        client.set_registered_model_alias(name, Alias.CHAMPION.value, target)
        if present:
            client.set_registered_model_alias(name, Alias.PREVIOUS.value, present)
        return _read_back(client, name, target, f"rolled back from version {present or 'none'} to {target}; {deploy}")


def journal(registry: Registry, name: str) -> tuple[JournalEntry, ...]:
    """List every move of a model's champion, oldest first; raises `UserError` when there is no such model."""
    with registry.calls() as client:
        if find_model(client, name) is None:
            raise no_such_model(name, registry)
        found = client.search_model_versions(f"name = '{name}'")
    texts = [text for version in found for tag, text in version.tags.items() if tag.startswith(JOURNAL_PREFIX)]
    return tuple(sorted((JournalEntry.model_validate_json(text) for text in texts), key=lambda entry: entry.when))


def _holders(client: "MlflowClient", name: str) -> dict[str, str]:
    model = find_model(client, name)
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def _read_back(client: "MlflowClient", name: str, version: str, reason: str) -> Release:
    after = _holders(client, name)
    if after.get(Alias.CHAMPION) == version:
        return _release(after, moved=True, reason=reason)
    return _release(after, moved=False, reason=f"someone else moved the champion at the same moment, not to {version}")


def _release(holders: dict[str, str], *, moved: bool, reason: str) -> Release:
    champion_version, previous_version = holders.get(Alias.CHAMPION), holders.get(Alias.PREVIOUS)
    return Release(champion_version=champion_version, previous_version=previous_version, moved=moved, reason=reason)


def _overtaken(version: str, expected: str | None, present: str | None) -> str:
    was = f"version {expected}" if expected else "no champion"
    now = f"the champion is version {present}" if present else "there is no champion"
    return f"version {version} was compared with {was}, but now {now}: evaluate it again"


def _deployment(info: VersionInfo) -> str:
    if info.image_digest is None:
        return f"version {info.version} has no image on record: make one before deploying it"
    repository = (info.image_reference or "").partition("@")[0]
    return f"deploy {repository}@{info.image_digest}" if repository else f"deploy {info.image_digest}"


def _listed(registry: Registry, name: str) -> str:
    return ", ".join(info.version for info in versions(registry, name)) or "there is none"


def _note(client: "MlflowClient", name: str, entry: JournalEntry) -> None:
    client.set_model_version_tag(name, entry.to_version, f"{JOURNAL_PREFIX}{entry.when}", entry.model_dump_json())


def _entry(action: Action, who: str, why: str, from_version: str | None, to_version: str) -> JournalEntry:
    # Microseconds, so that two moves have two tags; `Z`, since a tag's name may hold no `+`.
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return JournalEntry(when=when, action=action, who=who, why=why, from_version=from_version, to_version=to_version)
