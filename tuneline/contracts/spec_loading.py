"""A YAML file and its overrides to a `RunSpec`, with every mistake found at once.

Each problem names the file, the line and the key, and for a key that does not exist the nearest one that does.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.spec import RunSpec

KeyPath = tuple[str | int, ...]


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a config.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UserError: with every problem of the file and of the overrides.
    """
    document, places, problems = _read(path)
    for override in overrides:
        problems += _apply(override, document, places)
    try:
        spec = RunSpec.model_validate(document)
    except ValidationError as error:
        problems += [_explain(detail, places, path) for detail in error.errors()]
    if problems:
        raise UserError(problems)
    return spec


def _read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str], list[Problem]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError.of("no such file", str(path), f"looked from {Path.cwd()}") from None
    except IsADirectoryError:
        raise UserError.of("this is a folder", str(path), "name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError.of(f"byte {error.start} is not UTF-8", str(path), "save the file as UTF-8") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError.of(f"not YAML: {error.problem or error.context}", f"{path}:{line}") from None
    if not isinstance(document, dict):
        raise UserError.of("the file holds no sections", str(path), "start with `name:`, `model:` and `data:`")
    places: dict[KeyPath, str] = {}
    problems = list(_walk(root, (), path, places))
    return document, places, problems


def _walk(node: yaml.Node | None, key_path: KeyPath, path: Path, places: dict[KeyPath, str]) -> Iterator[Problem]:
    """Note the line of every key; a key written twice is a problem, since YAML would keep the last silently."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            here = (*key_path, key_node.value)
            place = f"{path}:{key_node.start_mark.line + 1}"
            if here in places:
                yield Problem(f"key `{dotted(here)}` is written twice", place, f"it also stands at {places[here]}")
            places[here] = place
            yield from _walk(value_node, here, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*key_path, index)] = f"{path}:{item.start_mark.line + 1}"


def _apply(override: str, document: dict[str, Any], places: dict[KeyPath, str]) -> list[Problem]:
    place = f"--set {override}"
    key, separator, text = override.partition("=")
    if not separator or not key:
        return [Problem("an override needs `section.key=value`", place)]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return [Problem("the value is not YAML", place, "quote it")]
    *sections, last = key.strip().split(".")
    target: Any = document
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            return [Problem(f"`{section}` is not a section", place)]
    target[last] = value
    places[(*sections, last)] = place
    return []


def _explain(detail: ErrorDetails, places: dict[KeyPath, str], path: Path) -> Problem:
    location = tuple(part for part in detail["loc"] if not _is_variant(part))
    key = dotted(location)
    match detail["type"]:
        case "extra_forbidden":
            nearest = _nearest_key(location)
            fix = f"did you mean `{nearest}`?" if nearest else "`tuneline schema` lists the keys"
            return Problem(f"unknown key `{key}`", _place(location, places, path), fix)
        case "missing":
            return Problem(f"key `{key}` is missing", _place(location[:-1], places, path), _help_of(location))
        case "value_error":
            what = str(detail["ctx"]["error"])
            return Problem(f"`{key}`: {what}" if key else what, _place(location, places, path))
    what = f"`{key}` is {detail['input']!r}: {_lower_first(detail['msg'])}"
    return Problem(what, _place(location, places, path), _help_of(location))


def _is_variant(part: str | int) -> bool:
    """Whether pydantic named a member of a union here rather than a key."""
    return isinstance(part, str) and (part in {"str", "int", "float", "bool"} or part.startswith("tuple["))


def _place(location: KeyPath, places: dict[KeyPath, str], path: Path) -> str:
    for length in range(len(location), 0, -1):
        if location[:length] in places:
            return places[location[:length]]
    return str(path)


def _nearest_key(location: KeyPath) -> str | None:
    section = _section_at(location[:-1])
    if section is None:
        return None
    known = {name: dotted((*location[:-1], name)) for name in section.model_fields}
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if close:
        return known[close[0]]
    elsewhere = [key for key in all_keys() if key.split(".")[-1] == location[-1]]
    return elsewhere[0] if elsewhere else None


def _help_of(location: KeyPath) -> str:
    section = _section_at(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section and location else None
    return field.description or "" if field else ""


def _section_at(location: KeyPath) -> type[BaseModel] | None:
    section: type[BaseModel] = RunSpec
    for part in location:
        field = section.model_fields.get(str(part))
        inner = _as_section(field.annotation) if field else None
        if inner is None:
            return None
        section = inner
    return section


def _as_section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return None


def all_keys(section: type[BaseModel] = RunSpec) -> list[str]:
    """List every user-settable key as `section.key` (top-level values by their name)."""
    keys = []
    for name, field in section.model_fields.items():
        inner = _as_section(field.annotation)
        keys += [f"{name}.{key}" for key in all_keys(inner)] if inner else [name]
    return keys


def dotted(location: KeyPath) -> str:
    """Write a key path as a user would."""
    return ".".join(str(part) for part in location)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
