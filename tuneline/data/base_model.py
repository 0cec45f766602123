"""The base model's folder on this disk, checked for what every later stage needs of it."""

import json
from dataclasses import dataclass
from pathlib import Path

from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.hashing import HashCache, tree_sha256
from tuneline.contracts.spec import ModelSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk: `sha256` covers the names and bytes of its files."""

    path: Path
    sha256: str


def locate_base(spec: ModelSpec, hashes: HashCache) -> BaseModel:
    """Find the base model's folder, from the Hub's cache or download when it is not a folder, and check it.

    Raises:
        UserError: a folder without config, weights, tokenizer or chat template; a Hub name that cannot be had.
    """
    folder = Path(spec.base)
    path = folder if folder.is_dir() else _from_hub(spec)
    problems = list(_missing_parts(path, spec))
    if problems:
        raise UserError(problems)
    return BaseModel(path.absolute(), tree_sha256(path, hashes))


def _from_hub(spec: ModelSpec) -> Path:
    if spec.base.startswith((".", "/")) or spec.base.count("/") != 1:
        raise UserError.of("no such folder", f"model.base {spec.base}", f"looked from {Path.cwd()}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(spec.base, revision=spec.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError.of(
            f"neither a folder here nor to be had from the Hub ({type(error).__name__})",
            f"model.base {spec.base}",
            "check the name and model.revision, log in for a gated model, or download it and name its folder",
        ) from error


def _missing_parts(path: Path, spec: ModelSpec) -> list[Problem]:
    where = f"model.base {path}"
    problems = []
    if not (path / "config.json").is_file():
        problems.append(Problem("the folder has no config.json", where, "name a folder in Hugging Face layout"))
    if not any(path.glob("*.safetensors")):
        fix = "convert other formats with transformers' save_pretrained; pickled weights are not loaded"
        problems.append(Problem("the folder has no *.safetensors weights", where, fix))
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        problems.append(Problem("the folder has no tokenizer", where, f"one of {', '.join(TOKENIZER_FILES)} is needed"))
    elif not _has_template(path, spec):
        fix = "name a Jinja file in model.chat_template (many base models have none; their chat siblings do)"
        problems.append(Problem("the tokenizer has no chat template", where, fix))
    return problems


def _has_template(path: Path, spec: ModelSpec) -> bool:
    if spec.chat_template is not None:
        if not Path(spec.chat_template).is_file():
            raise UserError.of("no such file", f"model.chat_template {spec.chat_template}", f"looked from {Path.cwd()}")
        return True
    config = path / "tokenizer_config.json"
    in_config = config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    return in_config or (path / "chat_template.jinja").is_file()
