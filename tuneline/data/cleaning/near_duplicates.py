"""Rows that nearly repeat another: MinHash signatures of word 3-grams, compared by bands of locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997): the share of permutations under which two sets have
the same smallest member estimates their Jaccard similarity J, with a standard error of sqrt(J (1 - J) / PERMUTATIONS):
0.035 at J = 0.8.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from tuneline.data.cleaning.words import HashedRows, hashed_runs, hashed_words

Signatures = NDArray[np.uint32]
Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]

PERMUTATIONS: Final = 128
SHINGLE_WORDS: Final = 3
SIGNATURE_SEED: Final = 1
"""Seed of the permutations: signatures compare only under the same one."""
NO_WORDS: Final = np.uint32(0xFFFFFFFF)
"""Fills the signature of a text without words, which is like no other text."""
NO_MATCH: Final = np.iinfo(np.int64).max
BAND_RECALL: Final = 0.99
"""Least probability that two rows exactly as similar as asked for meet in some band."""
BAND_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
BUCKET_NEIGHBOURS: Final = 2
"""Rows before it in its bucket that a row is compared with, beside the bucket's first."""
BUCKET_CANDIDATES: Final = 8
"""Rows of a bucket of the other set that a row is compared with."""
BLOCK_ROWS: Final = 16_384
"""Signatures in memory at a time: 8 MB."""


@dataclass(frozen=True)
class Bands:
    """Groups of `width` permutations; rows that agree on a whole group are compared."""

    count: int
    width: int
    least_agreements: int
    """Permutations that two near-duplicates agree on, at least."""

    def slices(self) -> Iterator[slice]:
        """Give the columns of each band."""
        return (slice(start, start + self.width) for start in range(0, self.count * self.width, self.width))


def bands_for(similarity: float) -> Bands:
    """Choose the widest bands, and so the fewest comparisons in vain, that keep `BAND_RECALL` at this similarity.

    Rows of similarity s meet in one of b bands of width r with probability 1 - (1 - s**r)**b.
    """
    fits = [
        width
        for width in range(1, PERMUTATIONS + 1)
        if 1 - (1 - similarity**width) ** (PERMUTATIONS // width) >= BAND_RECALL
    ]
    width = max(fits)
    return Bands(PERMUTATIONS // width, width, ceil(similarity * PERMUTATIONS - 1e-9))


def signatures(texts: Sequence[str]) -> Signatures:
    """Compute the MinHash signature of each text's word 3-grams (of its words, when it has fewer than 3).

    Returns:
        Array of shape (texts, PERMUTATIONS). A row depends on its text alone, never on its neighbours.
    """
    return signatures_of(hashed_words(texts))


def signatures_of(words: HashedRows) -> Signatures:
    """Compute the signatures of texts of which the words are at hand."""
    return minhash(shingle_hashes(words))


def shingle_hashes(words: HashedRows) -> HashedRows:
    """Hash the word 3-grams of each text, or its words when it has fewer than 3."""
    return _merged(hashed_runs(words, SHINGLE_WORDS), words)


def minhash(shingles: HashedRows) -> Signatures:
    """Compute the MinHash signature of each row of hashes, as an array of shape (rows, PERMUTATIONS)."""
    with _one_rayon_thread():
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.hashes, shingles.offsets.astype(np.uint64), PERMUTATIONS, SIGNATURE_SEED
        )
    # the matrix has no buffer to read: its lists of numbers take 6 times as long as the digests in them
    values = chain.from_iterable(matrix.to_rows())
    rows = len(shingles.offsets) - 1
    return np.fromiter(values, np.uint32, rows * PERMUTATIONS).reshape(rows, PERMUTATIONS)


def _merged(runs: HashedRows, words: HashedRows) -> HashedRows:
    """Take a row's runs, or its words where it has no run."""
    if (runs.lengths > 0).all():
        return runs
    short = runs.lengths == 0
    lengths = np.where(short, words.lengths, runs.lengths)
    hashes = np.empty(lengths.sum(), dtype=np.uint64)
    is_word = np.repeat(short, lengths)
    hashes[is_word] = words.hashes[np.repeat(short, words.lengths)]
    hashes[~is_word] = runs.hashes
    return HashedRows(hashes, np.concatenate(([0], np.cumsum(lengths))))


@contextmanager
def _one_rayon_thread() -> Iterator[None]:
    # rensa's thread pool does not survive a fork: a worker forked after its first use would wait for ever on threads
    # that it does not have; with one thread the pool is not asked
    variable = "RAYON_NUM_THREADS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def first_of_cluster(signatures: Signatures, similarity: float) -> Rows:
    """Find, for each row, the first row of its cluster of near-duplicates: itself where it has none before it.

    Clusters are chains: A and C are together when both resemble B. Within a bucket a row is compared with the
    bucket's first row and with its `BUCKET_NEIGHBOURS` before it: linear however large the bucket is, and as real
    near-duplicates resemble all of their cluster and meet in several bands, next to none is missed.

    Args:
        signatures: array (or memory map) of shape (rows, PERMUTATIONS); it is read a block at a time.
        similarity: Jaccard similarity, as estimated by the signatures, from which two rows are near-duplicates.

    Returns:
        Array of shape (rows,). Memory: about 60 bytes a row beside the signatures.
    """
    bands = bands_for(similarity)
    first = np.arange(len(signatures))
    worded = np.flatnonzero(_have_words(signatures))
    for columns in bands.slices():
        keys = _band_keys(signatures, columns)[worded]
        order = np.argsort(keys, kind="stable")  # the rows of a bucket in their own order, on every machine
        for later, earlier in _bucket_pairs(keys[order]):
            pairs = worded[order[later]], worded[order[earlier]]
            apart = first[pairs[0]] != first[pairs[1]]
            left, right = pairs[0][apart], pairs[1][apart]
            alike = _agree(signatures, left, signatures, right, bands.least_agreements)
            _unite(first, left[alike], right[alike])
    return first


def first_match(rows: Signatures, others: Signatures, similarity: float) -> Rows:
    """Find, for each of `rows`, the first of `others` that is similar enough; -1 where none is.

    Of `others` that share a bucket, the first `BUCKET_CANDIDATES` different ones are compared.

    Args:
        rows: array (or memory map) of shape (rows, PERMUTATIONS).
        others: array (or memory map) of shape (others, PERMUTATIONS).
        similarity: as for `first_of_cluster`.

    Returns:
        Array of shape (rows,) of numbers of `others`.
    """
    bands = bands_for(similarity)
    match = np.full(len(rows), NO_MATCH)
    distinct = np.flatnonzero((first_of_cluster(others, 1.0) == np.arange(len(others))) & _have_words(others))
    for columns in bands.slices():
        other_keys = _band_keys(others, columns)[distinct]
        order = np.argsort(other_keys, kind="stable")
        for met, places in _bucket_candidates(_band_keys(rows, columns), other_keys[order]):
            candidates = distinct[order[places]]
            better = candidates < match[met]
            row, other = met[better], candidates[better]
            alike = _agree(rows, row, others, other, bands.least_agreements)
            match[row[alike]] = other[alike]
    return np.where(match == NO_MATCH, -1, match)


def _bucket_candidates(keys: Keys, sorted_keys: Keys) -> Iterator[tuple[Rows, Rows]]:
    """Give the keys that occur among the sorted ones, and the place of the first of those, of the second, and so on."""
    met = np.arange(len(keys))
    places = np.searchsorted(sorted_keys, keys)
    for _ in range(BUCKET_CANDIDATES):
        inside = places < len(sorted_keys)
        met, places = met[inside], places[inside]
        same = sorted_keys[places] == keys[met]
        met, places = met[same], places[same]
        yield met, places
        places = places + 1


def _have_words(signatures: Signatures) -> NDArray[np.bool_]:
    blocks = [(block != NO_WORDS).any(axis=1) for _, block in _blocks(signatures)]
    return np.concatenate([np.zeros(0, dtype=bool), *blocks])


def _band_keys(signatures: Signatures, columns: slice) -> Keys:
    """Hash each row's values of a band to 64 bits."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for rows, block in _blocks(signatures):
        for values in block[:, columns].T:
            keys[rows] *= BAND_MULTIPLIER
            keys[rows] += values
    return keys


def _bucket_pairs(sorted_keys: Keys) -> Iterator[tuple[Rows, Rows]]:
    """Give places in the sorted keys to compare: each with its bucket's first, and with the ones just before it."""
    begins = np.concatenate((np.ones(min(len(sorted_keys), 1), dtype=bool), sorted_keys[1:] != sorted_keys[:-1]))
    later = np.flatnonzero(~begins)
    yield later, np.flatnonzero(begins)[np.cumsum(begins)[later] - 1]
    for distance in range(1, BUCKET_NEIGHBOURS + 1):
        later = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance]) + distance
        yield later, later - distance


def _agree(left: Signatures, left_rows: Rows, right: Signatures, right_rows: Rows, least: int) -> NDArray[np.bool_]:
    """Tell which pairs of rows have at least so many values in common."""
    agree = np.zeros(len(left_rows), dtype=bool)
    for start in range(0, len(left_rows), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        same = left[left_rows[block]] == right[right_rows[block]]
        agree[block] = np.count_nonzero(same, axis=1) >= least
        _forget_pages(left)
        _forget_pages(right)
    return agree


def _blocks(signatures: Signatures) -> Iterator[tuple[slice, Signatures]]:
    for start in range(0, len(signatures), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        yield rows, signatures[rows]
        _forget_pages(signatures)


def _forget_pages(signatures: Signatures) -> None:
    # what was read of a memory map counts as this process's memory until it is given back: 2.6 GB for 5 million rows
    if isinstance(signatures, np.memmap) and signatures.mode == "r" and isinstance(signatures.base, mmap.mmap):
        signatures.base.madvise(mmap.MADV_DONTNEED)


def _unite(first: Rows, left: Rows, right: Rows) -> None:
    """Join the clusters of each pair; `first` names every row's first row before and after."""
    while True:
        low, high = np.minimum(first[left], first[right]), np.maximum(first[left], first[right])
        apart = low != high
        if not apart.any():
            return
        np.minimum.at(first, high[apart], low[apart])
        while (first[first] != first).any():
            first[:] = first[first]
