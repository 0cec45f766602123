"""Training rows that share a run of 13 words with an evaluation row.

13 words is the overlap that Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C, takes for
contamination.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from tuneline.data.cleaning.words import HashedRows, Hashes, hashed_runs, hashed_words

NGRAM_WORDS: Final = 13
LEAST_COMMON_ROWS: Final = 10
"""An n-gram in fewer evaluation rows is never taken for a part of their prompt template."""
PARTITION_BITS: Final = 4
"""The n-grams are sorted in 2**4 parts, one after another, so that sorting needs a 16th of the memory."""
BEGINNING_BITS: Final = 22
"""4 MB for a table that a hash is first looked up in; a search among 200,000 n-grams costs 10 times as much."""
NO_ROW: Final = np.iinfo(np.int64).max

RowNumbers = NDArray[np.uint32]


@dataclass(frozen=True)
class NgramIndex:
    """The runs of 13 words of an evaluation set: 12 bytes per different run.

    Build it once, `save` it, and `load` it in every process: the memory map is shared.
    """

    ngrams: Hashes
    """Hashes in rising order."""
    rows: RowNumbers
    """The first evaluation row that each n-gram stands in."""
    left_out: int
    """N-grams left out as parts of a prompt template that many evaluation rows share."""

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]], common_share: float = 0.1) -> Self:
        """Index chunks of an evaluation set's texts.

        Args:
            texts: chunks of the texts, in the order in which rows are numbered.
            common_share: n-grams in more than this share of the rows (and in at least `LEAST_COMMON_ROWS`) come from
                a prompt template, and are left out: else every training row with the same template would be a leak.
        """
        parts: list[list[_Occurrences]] = [[] for _ in range(2**PARTITION_BITS)]
        rows = 0
        for chunk in texts:
            for part, occurrences in zip(parts, _partitioned(chunk, rows), strict=True):
                part.append(occurrences)
            rows += len(chunk)
        return cls(*_merged(parts, most_rows=max(common_share * rows, LEAST_COMMON_ROWS - 1)))

    def save(self, path: Path) -> None:
        """Write the index into the folder `path`."""
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / "ngrams.npy", self.ngrams)
        np.save(path / "rows.npy", self.rows)
        np.save(path / "left_out.npy", np.int64(self.left_out))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Map the index that `save` wrote into memory, without reading it."""
        ngrams, rows = (np.load(path / name, mmap_mode="r") for name in ("ngrams.npy", "rows.npy"))
        return cls(ngrams, rows, int(np.load(path / "left_out.npy")))

    def first_hit(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Find, for each text, the first evaluation row that shares a run of 13 words with it; -1 where none does.

        Returns:
            Array of shape (texts,).
        """
        return self.first_hit_of(hashed_words(texts))

    def first_hit_of(self, words: HashedRows) -> NDArray[np.int64]:
        """Do the same for texts of which the words are at hand."""
        runs = hashed_runs(words, NGRAM_WORDS)
        likely = self._beginnings[runs.hashes >> np.uint64(64 - BEGINNING_BITS)]
        hashes, rows = runs.hashes[likely], runs.rows[likely]
        shared, evaluation_rows = self._look_up(np.sort(hashes))
        first = np.full(len(words.offsets) - 1, NO_ROW)
        if len(shared):
            at = np.minimum(np.searchsorted(shared, hashes), len(shared) - 1)
            hit = shared[at] == hashes
            np.minimum.at(first, rows[hit], evaluation_rows[at[hit]])
        return np.where(first == NO_ROW, -1, first)

    @cached_property
    def _beginnings(self) -> NDArray[np.bool_]:
        """Which beginnings of a hash occur: nearly every hash that is not in the index is turned away by it."""
        seen = np.zeros(2**BEGINNING_BITS, dtype=np.bool_)
        seen[self.ngrams >> np.uint64(64 - BEGINNING_BITS)] = True
        return seen

    def _look_up(self, hashes: Hashes) -> tuple[Hashes, NDArray[np.int64]]:
        """Find those of the sorted hashes that are in the index, and their rows.

        In rising order a hash is looked up among 12 million n-grams in 0.2 us; in the order of the text it takes 1.4.
        """
        if not len(self.ngrams):
            return hashes[:0], np.zeros(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.ngrams, hashes), len(self.ngrams) - 1)
        found = self.ngrams[at] == hashes
        return hashes[found], self.rows[at[found]].astype(np.int64)


@dataclass(frozen=True)
class _Occurrences:
    """N-grams and the rows they stand in, each pair once, by n-gram and then by row."""

    ngrams: Hashes
    rows: RowNumbers


def _partitioned(texts: Sequence[str], first_row: int) -> list[_Occurrences]:
    """Find the n-grams of a chunk, split by their highest bits."""
    runs = hashed_runs(hashed_words(texts), NGRAM_WORDS)
    order = np.argsort(runs.hashes, kind="stable")  # stable: a run's rows stay in order
    ngrams, rows = runs.hashes[order], (runs.rows[order] + first_row).astype(np.uint32)
    new = _differs(ngrams) | _differs(rows)
    ngrams, rows = ngrams[new], rows[new]
    borders = np.arange(1, 2**PARTITION_BITS, dtype=np.uint64) << np.uint64(64 - PARTITION_BITS)
    places = [0, *np.searchsorted(ngrams, borders).tolist(), len(ngrams)]
    # copies, so that a part can be freed while the others are still waiting
    return [_Occurrences(ngrams[a:b].copy(), rows[a:b].copy()) for a, b in pairwise(places)]


def _merged(parts: list[list[_Occurrences]], most_rows: float) -> tuple[Hashes, RowNumbers, int]:
    """Keep each n-gram once, with its first row, unless it stands in more than `most_rows`."""
    most = sum(len(occurrences.ngrams) for part in parts for occurrences in part)
    ngrams, rows = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint32)
    size = left_out = 0
    for part in parts:
        hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(each.ngrams for each in part)])
        row = np.concatenate([np.zeros(0, dtype=np.uint32), *(each.rows for each in part)])
        part.clear()
        order = np.argsort(hashes, kind="stable")
        starts = np.flatnonzero(_differs(hashes[order]))
        rare = np.diff(np.append(starts, len(order))) <= most_rows
        kept = order[starts[rare]]
        ngrams[size : size + len(kept)], rows[size : size + len(kept)] = hashes[kept], row[kept]
        size += len(kept)
        left_out += int(np.count_nonzero(~rare))
    return ngrams[:size], rows[:size], left_out


def _differs(values: NDArray[np.uint64] | NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Tell which values differ from the one before them; the first does."""
    return np.concatenate((np.ones(min(len(values), 1), dtype=bool), values[1:] != values[:-1]))
