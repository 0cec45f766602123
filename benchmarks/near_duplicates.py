"""Near-duplicates found by rensa's and by datasketch's MinHash, on the same rows.

rensa stands for what tuneline does with it: 3-grams hashed by Arrow and numpy, rensa's digests, tuneline's LSH.
datasketch is used as its documentation shows: 3-grams made in Python, its own LSH with the bands that it chooses (9 of
13), and once with tuneline's. The shingles have a column of their own, so that the libraries' MinHash can be told from
what stands around it.

python -m benchmarks.near_duplicates
"""

import gc
import json
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datasketch import MinHash, MinHashLSH
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from tuneline.data.cleaning.near_duplicates import (
    PERMUTATIONS,
    SHINGLE_WORDS,
    bands_for,
    first_of_cluster,
    minhash,
    shingle_hashes,
)
from tuneline.data.cleaning.words import hashed_words

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
ROWS = 20_000
COPIES_SHARE = 0.05
MOST_CHANGED_SHARE = 0.12
"""Words changed in a copy, at most: copies are then 0.5 to 1.0 alike, around the limit of 0.8."""
SIMILARITY = 0.8
CHUNK_ROWS = 2_000
REPEATS = 3
SEED = 17


@dataclass(frozen=True)
class Corpus:
    """Rows in random order; `copies` are pairs (row, its copy) with their exact Jaccard similarity."""

    texts: list[str]
    copies: dict[tuple[int, int], float]


@dataclass(frozen=True)
class Timing:
    """What a library took, and which rows it puts together: `first` names the first row of each row's cluster."""

    shingle_seconds: float
    signature_seconds: float
    search_seconds: float
    first: list[int]


def shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(max(len(words) - SHINGLE_WORDS + 1, 1))}


def jaccard(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def make_corpus() -> Corpus:
    """Pair questions with other rows' answers until there are enough, add copies with some words changed, shuffle."""
    draw = random.Random(SEED)
    lines = [line for name in ("train", "test") for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    originals = round(ROWS * (1 - COPIES_SHARE))
    pairs = [(index % len(rows), (index * 7 + index // len(rows) * 1_009) % len(rows)) for index in range(originals)]
    texts = [f"{rows[question]['question']}\n{rows[answer]['answer']}" for question, answer in pairs]
    sources = draw.sample(range(originals), ROWS - originals)
    texts += [changed(draw, texts[source]) for source in sources]
    order = list(range(ROWS))
    draw.shuffle(order)
    place = {row: index for index, row in enumerate(order)}
    copies = {
        (place[source], place[originals + n]): jaccard(texts[source], texts[originals + n])
        for n, source in enumerate(sources)
    }
    return Corpus([texts[row] for row in order], copies)


def changed(draw: random.Random, text: str) -> str:
    words = text.split(" ")
    for index in draw.sample(range(len(words)), round(draw.uniform(0, MOST_CHANGED_SHARE) * len(words))):
        words[index] = f"word{draw.randrange(1_000)}"
    return " ".join(words)


def with_rensa(texts: list[str]) -> Timing:
    chunks = [texts[start : start + CHUNK_ROWS] for start in range(0, len(texts), CHUNK_ROWS)]
    started = time.perf_counter()
    hashes = [shingle_hashes(hashed_words(chunk)) for chunk in chunks]
    shingled = time.perf_counter()
    matrix = np.concatenate([minhash(each) for each in hashes])
    signed = time.perf_counter()
    first = first_of_cluster(matrix, SIMILARITY).tolist()
    return Timing(shingled - started, signed - shingled, time.perf_counter() - signed, first)


def with_datasketch(texts: list[str], bands: tuple[int, int] | None = None) -> Timing:
    """Do the same: candidates from the LSH are verified by the signatures, a row joins its first match's cluster."""
    started = time.perf_counter()
    sets = [[shingle.encode() for shingle in shingles(text)] for text in texts]
    shingled = time.perf_counter()
    hashes = MinHash.bulk(sets, num_perm=PERMUTATIONS)
    signed = time.perf_counter()
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, params=bands)
    first = list(range(len(texts)))
    for row, one in enumerate(hashes):
        alike = [other for other in index.query(one) if one.jaccard(hashes[other]) >= SIMILARITY]
        first[row] = min((first[other] for other in alike), default=row)
        index.insert(row, one)
    return Timing(shingled - started, signed - shingled, time.perf_counter() - signed, first)


def recall_and_precision(corpus: Corpus, first: list[int]) -> tuple[float, float]:
    """Compare with exact similarity: recall over the copies, precision over all rows that are said to repeat one."""
    alike = {pair for pair, exact in corpus.copies.items() if exact >= SIMILARITY}
    recall = statistics.mean(first[one] == first[other] for one, other in alike)
    said = [(name, row) for row, name in enumerate(first) if name != row]
    precision = statistics.mean(jaccard(corpus.texts[one], corpus.texts[other]) >= SIMILARITY for one, other in said)
    return recall, precision


def main() -> None:
    """Print the table."""
    if not GSM8K.is_dir():
        sys.exit(f"{GSM8K} is not here: the rows are made from it")
    corpus = make_corpus()
    alike = sum(exact >= SIMILARITY for exact in corpus.copies.values())
    table = Table(
        title=f"{ROWS:,} rows with {len(corpus.copies):,} copies, {alike:,} of them {SIMILARITY} alike and more; "
        f"{PERMUTATIONS} permutations, one thread, median of {REPEATS}\n{describe_machine()}",
        title_justify="left",
    )
    for column in (
        "library",
        "shingles s",
        "MinHash s",
        "LSH s",
        "all s (min to max)",
        "rows/s",
        "recall",
        "precision",
    ):
        table.add_column(column)
    bands = bands_for(SIMILARITY)
    libraries: dict[str, Callable[[list[str]], Timing]] = {
        "rensa": with_rensa,
        "datasketch": with_datasketch,
        f"datasketch, {bands.count} bands of {bands.width}": partial(with_datasketch, bands=(bands.count, bands.width)),
    }
    for name, find in libraries.items():
        runs = []
        for _ in range(REPEATS):
            gc.collect()
            runs.append(find(corpus.texts))
        steps = [(run.shingle_seconds, run.signature_seconds, run.search_seconds) for run in runs]
        totals = [sum(seconds) for seconds in steps]
        recall, precision = recall_and_precision(corpus, runs[0].first)
        table.add_row(
            name,
            *(f"{statistics.median(seconds):.2f}" for seconds in zip(*steps, strict=True)),
            f"{statistics.median(totals):.2f} ({min(totals):.2f} to {max(totals):.2f})",
            f"{ROWS / statistics.median(totals):,.0f}",
            f"{recall:.3f}",
            f"{precision:.3f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
