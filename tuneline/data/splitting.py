"""Which rows are repeated, held out, drawn, mixed and replayed: decided on keys, the same on every machine.

Pure functions of numpy columns. What happens to a row never depends on rows that are added later, except where a count
must be kept (a draw, a mix).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


def first_of(keys: Keys) -> Indices:
    """For each row, the number of the first row with the same key (its own when it is the first)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.concatenate([np.ones(min(len(keys), 1), dtype=np.bool_), ordered[1:] != ordered[:-1]])
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[begins][np.cumsum(begins, dtype=np.int32) - 1]
    return first


def conflicting(prompt_keys: Keys, whole_keys: Keys) -> Flags:
    """Mark the rows whose prompt also stands before another answer."""
    order = np.lexsort((whole_keys, prompt_keys))
    prompts, wholes = prompt_keys[order], whole_keys[order]
    two_answers = (prompts[1:] == prompts[:-1]) & (wholes[1:] != wholes[:-1])
    return np.isin(prompt_keys, prompts[1:][two_answers])


def uniform(keys: Keys, seed: int) -> NDArray[np.float64]:
    """Map keys to numbers in [0, 1) by a hash with the seed (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def held_out_by_group(groups: Keys, share: float, seed: int) -> Flags:
    """Mark whole groups by a hash of the group: adding rows never moves a row to the other side."""
    return uniform(groups, seed) < share


def held_out_by_time(times: NDArray[np.float64], share: float) -> Flags:
    """Mark the newest rows, at most `share` of them; rows of one moment stay together, on the older side if need be."""
    wanted = int(len(times) * share)
    if wanted == 0:
        return np.zeros(len(times), dtype=np.bool_)
    threshold = np.sort(times)[len(times) - wanted]
    at_or_after: Flags = times >= threshold
    return at_or_after if int(at_or_after.sum()) <= wanted else np.greater(times, threshold)


def draw(keys: Keys, limit: int | None, seed: int) -> Indices:
    """Choose at most `limit` rows by a hash of their keys, in their first order; equal rows count by their place."""
    if limit is None or len(keys) <= limit:
        return np.arange(len(keys))
    order = np.argsort(uniform(keys, seed), kind="stable")
    return np.sort(order[:limit])


def weighted_counts(counts: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows to take of each source so that their numbers are as the weights are: the most without repeating a row."""
    scale = min(count / weight for count, weight in zip(counts, weights, strict=True))
    return [min(count, round(scale * weight)) for count, weight in zip(counts, weights, strict=True)]


def replay_count(rows: int, available: int, replay_share: float) -> int:
    """Rows to replay beside `rows` so that they are `replay_share` of all; a small set is used whole, and once."""
    return min(available, round(rows * replay_share / (1.0 - replay_share)))
