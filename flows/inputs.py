"""What a config names, found, readable and hashed: met at the door, before anything is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.fingerprint import sha256_text
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.settings import Settings, processes_per_node
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec
from tuneline.data.base_model import BaseModel, locate_base
from tuneline.data.sources.identity import source_identity
from tuneline.planning.run import check_adapter


@dataclass(frozen=True)
class Inputs:
    """A config and what it names, found and readable."""

    spec: RunSpec
    base: BaseModel
    source_sha256: Mapping[str, str]


def open_inputs(config: str, overrides: Sequence[str], settings: Settings) -> Inputs:
    """Meet at the door what a user could have got wrong in config, base model and files.

    Raises:
        UserError: with every problem of the first of these that has any.
    """
    spec = load_spec(Path(config), overrides)
    processes_per_node(spec.budget.gpus, settings)
    hashes = remembered_hashes(settings)
    base = locate_base(spec.model, hashes)
    check_adapter(spec, base.path)
    return Inputs(spec, base, hash_sources(spec, hashes))


def remembered_hashes(settings: Settings) -> HashCache:
    """Return the hashes that earlier runs computed."""
    return HashCache(settings.home / "hashes.json")


def hash_sources(spec: RunSpec, hashes: HashCache) -> dict[str, str]:
    """Identify the content of the data section's sources, and of a chat template."""
    digests = {"train": _training_sha256(spec, hashes)}
    for key in ("held_out", "replay", "retention"):
        source = getattr(spec.data, key)
        if source is not None:
            digests[key] = source_identity(source, f"data.{key}", hashes).sha256_or_tag
    if spec.model.chat_template is not None:
        digests["chat_template"] = hashes.sha256(Path(spec.model.chat_template))
    return digests


def _training_sha256(spec: RunSpec, hashes: HashCache) -> str:
    """Identify the training rows: a single source by its content, several by theirs and their weights."""
    contents = {
        source_identity(source, "data.train", hashes).sha256_or_tag: weight
        for source, weight in spec.data.train_sources.items()
    }
    if len(spec.data.train_sources) == 1:
        return next(iter(contents))
    return sha256_text("".join(f"{content} {weight}\n" for content, weight in contents.items()))
