"""The base model's folder on this disk, checked for what every later stage needs of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.hashing import HashCache, tree_sha256
from tuneline.contracts.spec import ModelSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


TOKENIZER_PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
)
"""All that preparing data reads of a base model."""


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk: the hashes cover the names and bytes of its files, and of those that make its tokens."""

    path: Path
    sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class TokenizerFolder:
    """The files of a base model that make its tokens."""

    path: Path
    sha256: str


def locate_base(spec: ModelSpec, hashes: HashCache) -> BaseModel:
    """Find the base model's folder, from the Hub's cache or download when it is not a folder, and check it.

    Raises:
        UserError: a folder without config, weights, tokenizer or chat template; a Hub name that cannot be had.
    """
    path = _locate(spec, ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"))
    problems = [*_missing_weights(path), *_missing_tokenizer(path, spec)]
    if problems:
        raise UserError(problems)
    tokenizer_sha256 = tree_sha256(path, hashes, TOKENIZER_PATTERNS)
    return BaseModel(path.absolute(), tree_sha256(path, hashes), tokenizer_sha256)


def locate_tokenizer(spec: ModelSpec, hashes: HashCache) -> TokenizerFolder:
    """Find the base model's tokenizer alone: enough to prepare data, and no weights are downloaded.

    Raises:
        UserError: a folder without tokenizer or chat template; a Hub name that cannot be had.
    """
    path = _locate(spec, TOKENIZER_PATTERNS)
    problems = _missing_tokenizer(path, spec)
    if problems:
        raise UserError(problems)
    return TokenizerFolder(path.absolute(), tree_sha256(path, hashes, TOKENIZER_PATTERNS))


def _locate(spec: ModelSpec, patterns: Sequence[str]) -> Path:
    folder = Path(spec.base)
    return folder if folder.is_dir() else _from_hub(spec, patterns)


def _from_hub(spec: ModelSpec, patterns: Sequence[str]) -> Path:
    if spec.base.startswith((".", "/")) or spec.base.count("/") != 1:
        raise UserError.of("no such folder", f"model.base {spec.base}", f"looked from {Path.cwd()}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec.base, revision=spec.revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError.of(
            f"neither a folder here nor to be had from the Hub ({type(error).__name__})",
            f"model.base {spec.base}",
            "check the name and model.revision, log in for a gated model, or download it and name its folder",
        ) from error


def _missing_weights(path: Path) -> list[Problem]:
    where = f"model.base {path}"
    problems = []
    if not (path / "config.json").is_file():
        problems.append(Problem("the folder has no config.json", where, "name a folder in Hugging Face layout"))
    if not any(path.glob("*.safetensors")):
        fix = "convert other formats with transformers' save_pretrained; pickled weights are not loaded"
        problems.append(Problem("the folder has no *.safetensors weights", where, fix))
    return problems


def _missing_tokenizer(path: Path, spec: ModelSpec) -> list[Problem]:
    where = f"model.base {path}"
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return [Problem("the folder has no tokenizer", where, f"one of {', '.join(TOKENIZER_FILES)} is needed")]
    if not _has_template(path, spec):
        fix = "name a Jinja file in model.chat_template (many base models have none; their chat siblings do)"
        return [Problem("the tokenizer has no chat template", where, fix)]
    return []


def _has_template(path: Path, spec: ModelSpec) -> bool:
    if spec.chat_template is not None:
        if not Path(spec.chat_template).is_file():
            raise UserError.of("no such file", f"model.chat_template {spec.chat_template}", f"looked from {Path.cwd()}")
        return True
    config = path / "tokenizer_config.json"
    in_config = config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return in_config or (path / "chat_template.jinja").is_file()
