"""Which rows are held out, replayed and used: decided by hashes and seeds, the same on every machine."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Split(Generic[T]):
    """Rows to learn from, and rows kept apart."""

    train: list[T]
    held_out: list[T]


def split_by_group(rows: Sequence[T], group: Callable[[T], str], held_out_share: float, seed: int) -> Split[T]:
    """Hold out whole groups, chosen by a hash of the group's name and the seed.

    A group's side does not depend on the other rows: adding data never moves a row from held-out to train.
    """
    train: list[T] = []
    held_out: list[T] = []
    for row in rows:
        (held_out if _uniform(group(row), seed) < held_out_share else train).append(row)
    return Split(train, held_out)


def draw(rows: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """Take at most `limit` rows at random, in their first order."""
    if limit is None or len(rows) <= limit:
        return list(rows)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[index] for index in chosen]


def mix(rows: Sequence[T], replay: Sequence[T], replay_share: float, seed: int) -> list[T]:
    """Shuffle rows together with so many replayed ones that they make up `replay_share` of the result.

    A replay set too small for that is used whole, once: repeating rows would teach them by heart.
    """
    wanted = round(len(rows) * replay_share / (1.0 - replay_share))
    mixed = [*rows, *draw(replay, wanted, seed)]
    random.Random(seed).shuffle(mixed)
    return mixed


def _uniform(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
