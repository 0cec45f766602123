"""Identity of an artifact: what was asked for, never where it ran.

A fingerprint covers the stage's section of the config, the fingerprints of its inputs, the source of the stage's code
and the versions of the libraries that change its result. Paths, URLs, hardware, credentials and retries stay out, so
that the same request made on another machine is the same artifact. A value that has no single way of being written is
an error here rather than a cache miss (or, worse, a false hit) later.
"""

import ast
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel

FINGERPRINT_LENGTH = 16
"""Hex digits kept of the sha256: 64 bits, a collision in 2**32 artifacts."""


def canonical_json(value: object) -> str:
    """Write a value in the one way that equal values share.

    Raises:
        TypeError: for a value with no deterministic form (a set, a path, an object), naming where it sits.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _plain(value: object, where: str) -> object:
    match value:
        case BaseModel():
            return _plain(value.model_dump(mode="python"), where)
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise TypeError(f"{where} is {value}: NaN and infinities are not equal to themselves in JSON")
            return value
        case Mapping():
            bad = [key for key in value if not isinstance(key, str)]
            if bad:
                raise TypeError(f"{where} has keys that are not text: {bad!r}; write them as text first")
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which has no deterministic form: "
        "sort a set into a list, pass a file's hash instead of its path, a model's fields instead of an object"
    )


def fingerprint(
    stage: str, section: object, inputs: Iterable[str], packages: Iterable[str], libraries: Iterable[str]
) -> str:
    """Hash what a stage's result depends on.

    Args:
        stage: the stage's name.
        section: the part of the config that the stage reads (plain values or a pydantic model).
        inputs: fingerprints of the artifacts, and sha256 of the files, that it reads.
        packages: our packages whose source decides the result.
        libraries: installed distributions whose version decides it.

    Returns:
        `FINGERPRINT_LENGTH` hex digits.
    """
    identity = {
        "stage": stage,
        "section": section,
        "inputs": list(inputs),
        "code": {name: code_version(name) for name in packages},
        "libraries": {name: library_version(name) for name in libraries},
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:FINGERPRINT_LENGTH]


@cache
def code_version(package: str) -> str:
    """Hash the syntax trees of a package of ours: a comment or a blank line does not make a stage run again."""
    root = Path(__file__).resolve().parents[2].joinpath(*package.split("."))
    sources = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.relative_to(root.parent).as_posix().encode())
        digest.update(ast.dump(ast.parse(source.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def library_version(distribution: str) -> str:
    """Version of an installed distribution, or `absent`."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def sha256_file(path: Path) -> str:
    """Hash a file's bytes, 8 MiB at a time."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hash a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
