"""Training rows that stand in an evaluation set too: by the same prompt, a run of 13 words, or likeness as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.receipt import SHOWN_EXAMPLES, LeakLine
from tuneline.data.cleaning.near_duplicates import first_match, signatures, signatures_of
from tuneline.data.cleaning.ngrams import NGRAM_WORDS, NgramIndex
from tuneline.data.cleaning.words import hashed_words
from tuneline.data.ledger import Loss, Tally
from tuneline.data.splitting import Keys
from tuneline.data.stage import Stage, spoken
from tuneline.data.table import Part, RowTable

SAME_PROMPT = "same prompt"
SAME_RUN = f"{NGRAM_WORDS} words in a row"
ALIKE = "near-duplicate"
NAMED_AT_ONCE = 100_000


@dataclass(frozen=True)
class Selection:
    """Some rows of a table."""

    data_set: str
    table: RowTable
    rows: NDArray[np.int64]

    @property
    def prompt_keys(self) -> Keys:
        """Keys of their prompts."""
        return self.table.columns.prompt_keys[self.rows]


@dataclass(frozen=True)
class Leaks:
    """For each row of a training selection, the number of the evaluation row that it repeats; -1 for none."""

    exact: NDArray[np.int32]
    ngram: NDArray[np.int32]
    similar: NDArray[np.int32]


@dataclass(frozen=True)
class Leaking:
    """What leaks of a training selection into an evaluation set; named on demand, since it may be every row."""

    train: Selection
    evaluation: Selection
    leaks: Leaks

    @property
    def ways(self) -> dict[str, NDArray[np.int32]]:
        """The evaluation row that each training row repeats, by way; -1 for none."""
        return {SAME_PROMPT: self.leaks.exact, SAME_RUN: self.leaks.ngram, ALIKE: self.leaks.similar}

    @property
    def flags(self) -> NDArray[np.bool_]:
        """Rows that repeat something."""
        return np.asarray(np.any([column >= 0 for column in self.ways.values()], axis=0))

    def losses(self, way: str, rows: NDArray[np.int64]) -> Iterator[Loss]:
        """Name some leaking rows (places in the selection) and what they repeat."""
        column = self.ways[way]
        for start in range(0, len(rows), NAMED_AT_ONCE):
            part = rows[start : start + NAMED_AT_ONCE]
            names = self.train.table.names(self.train.rows[part])
            others = self.evaluation.table.names(self.evaluation.rows[column[part]])
            yield from (Loss(name, way, f"repeats {other}") for name, other in zip(names, others, strict=True))

    def once_each(self) -> Iterator[Loss]:
        """Name every leaking row under the first way in which it leaks."""
        seen = np.zeros(len(self.train.rows), dtype=np.bool_)
        for way, column in self.ways.items():
            yield from self.losses(way, np.flatnonzero((column >= 0) & ~seen))
            seen |= column >= 0

    def count(self, tally: Tally) -> None:
        """Count the leaking rows by way, the first of each by name."""
        for way, column in self.ways.items():
            rows = np.flatnonzero(column >= 0)
            tally.add(self.losses(way, rows[:SHOWN_EXAMPLES]))
            if len(rows) > SHOWN_EXAMPLES:
                tally.rows[way] += len(rows) - SHOWN_EXAMPLES


@dataclass(frozen=True)
class Hits:
    """What a chunk's rows repeat."""

    ngram: NDArray[np.int64]
    similar: NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """Where a worker finds what it compares with."""

    ngrams: Path
    signatures: Path
    similarity: float


def report_leaks(stage: Stage, training: Sequence[Selection], evaluation: Selection) -> tuple[LeakLine, list[Leaking]]:
    """Compare training rows with an evaluation set.

    Returns:
        The receipt's line, and what leaks of each selection.
    """
    reference, left_out = _write_reference(stage, evaluation)
    touched = np.zeros(len(evaluation.rows), dtype=np.bool_)
    tally = Tally()
    leaking: list[Leaking] = []
    for selection in training:
        found = Leaking(selection, evaluation, _find(stage, selection, reference, evaluation))
        found.count(tally)
        leaking.append(found)
        touched |= np.isin(evaluation.prompt_keys, selection.prompt_keys)
        for column in found.ways.values():
            touched[column[column >= 0]] = True
    line = LeakLine(
        data_set=evaluation.data_set,
        exact_prompts=tally.reason(SAME_PROMPT),
        ngrams=tally.reason(SAME_RUN),
        similar=tally.reason(ALIKE),
        items=len(touched),
        items_touched=int(touched.sum()),
        ngrams_left_out=left_out,
    )
    return line, leaking


def _find(stage: Stage, train: Selection, reference: Reference, evaluation: Selection) -> Leaks:
    ngram, similar = (np.empty(len(train.rows), dtype=np.int32) for _ in range(2))
    done = 0
    for hits in stage.workers.map(partial(_compare, reference), train.table.parts(train.rows)):
        rows = slice(done, done + len(hits.ngram))
        ngram[rows], similar[rows] = hits.ngram, hits.similar
        done = rows.stop
        stage.progress(done, len(train.rows), f"compare {train.data_set} with {spoken(evaluation.data_set)}")
    exact = _same_key(train.prompt_keys, evaluation.prompt_keys)
    return Leaks(exact, ngram, similar)


def _compare(reference: Reference, part: Part) -> Hits:
    index, others = _load(reference)
    words = hashed_words(part.texts())
    return Hits(index.first_hit_of(words), first_match(signatures_of(words), others, reference.similarity))


@lru_cache(maxsize=2)
def _load(reference: Reference) -> tuple[NgramIndex, NDArray[np.uint32]]:
    return NgramIndex.load(reference.ngrams), np.load(reference.signatures, mmap_mode="r")


def _write_reference(stage: Stage, evaluation: Selection) -> tuple[Reference, int]:
    texts = [part.texts() for part in evaluation.table.parts(evaluation.rows)]
    reference = Reference(
        ngrams=stage.folder / f"{evaluation.data_set}.ngrams",
        signatures=stage.folder / f"{evaluation.data_set}.minhash.npy",
        similarity=stage.spec.cleaning.similarity,
    )
    index = NgramIndex.build(texts)
    index.save(reference.ngrams)
    np.save(reference.signatures, np.concatenate([signatures(chunk) for chunk in texts]))
    return reference, index.left_out


def _same_key(keys: Keys, others: Keys) -> NDArray[np.int32]:
    """For each key, the number of the first equal one among the others; -1 when there is none."""
    unique, first = np.unique(others, return_index=True)
    place = np.minimum(np.searchsorted(unique, keys), len(unique) - 1)
    return np.where(unique[place] == keys, first[place].astype(np.int32), np.int32(-1))
