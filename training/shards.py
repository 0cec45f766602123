"""A model's safetensors files: which tensor is where, and writing them anew one shard at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tuneline.contracts.errors import UserError
from tuneline.contracts.store import write_whole

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9
"""Largest shard: transformers 5 writes up to 50 GB unless told otherwise, which is slow to load and to ship."""

Layout = Mapping[str, Sequence[str]]
"""Names of the tensors in each file."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies, and its shape."""

    shard: str
    name: str
    shape: tuple[int, ...]


def places_of(folder: Path) -> dict[str, TensorPlace]:
    """Find every tensor of a model's folder without reading its data.

    Raises:
        UserError: when the folder holds no safetensors.
    """
    if (folder / INDEX).exists():
        index: dict[str, dict[str, str]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    elif (folder / SINGLE).exists():
        shards = [SINGLE]
    else:
        fix = "convert it once: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        raise UserError.of(f"the folder holds neither {SINGLE} nor {INDEX}", "model.base", fix)
    return {place.name: place for shard in shards for place in _places_in(folder / shard)}


def read_tensor(folder: Path, place: TensorPlace) -> torch.Tensor:
    """Read one tensor."""
    with safe_open(folder / place.shard, framework="pt") as stream:
        tensor: torch.Tensor = stream.get_tensor(place.name)
    return tensor


def plan_layout(places: Mapping[str, TensorPlace], element_bytes: int, limit_bytes: int = SHARD_BYTES) -> Layout:
    """Choose the files of the new model: those of the old one if each stays within the limit, else filled in order.

    Args:
        places: tensors of the old model.
        element_bytes: bytes of a number in the new one.
        limit_bytes: largest file.
    """
    old: dict[str, list[str]] = {}
    for place in places.values():
        old.setdefault(place.shard, []).append(place.name)
    sizes = {name: prod(place.shape) * element_bytes for name, place in places.items()}
    if all(sum(sizes[name] for name in names) <= limit_bytes for names in old.values()):
        return old
    filled = _fill(sizes, limit_bytes)
    return {f"model-{number:05d}-of-{len(filled):05d}.safetensors": names for number, names in enumerate(filled, 1)}


def write_model(
    folder: Path, layout: Layout, tensor_of: Callable[[str], torch.Tensor], written: Callable[[int], None]
) -> int:
    """Write a model's files, holding one of them in memory at a time.

    Args:
        folder: where to.
        layout: which tensor goes into which file.
        tensor_of: makes a tensor.
        written: told how many tensors are on disk, after each file.

    Returns:
        Bytes of all tensors.
    """
    total_bytes = 0
    done = 0
    for shard, names in layout.items():
        tensors = {name: tensor_of(name) for name in names}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        done += len(names)
        written(done)
    if list(layout) != [SINGLE]:
        weight_map = {name: shard for shard, names in layout.items() for name in names}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_whole(folder / INDEX, json.dumps(index, indent=1, sort_keys=True))
    return total_bytes


def _places_in(path: Path) -> Iterator[TensorPlace]:
    with safe_open(path, framework="pt") as stream:
        for name in stream.keys():  # noqa: SIM118  # safe_open is no mapping
            yield TensorPlace(path.name, name, tuple(stream.get_slice(name).get_shape()))


def _fill(sizes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    filled: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if filled[-1] and used + size > limit_bytes:
            filled.append([])
            used = 0
        filled[-1].append(name)
        used += size
    return filled
