"""Near-duplicates: estimates that agree with exact similarity, clusters that depend on nothing but the rows."""

import csv
import os
import random
import re
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tuneline.data.cleaning import near_duplicates
from tuneline.data.cleaning.near_duplicates import PERMUTATIONS, bands_for, first_match, first_of_cluster, signatures

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABULARY = [f"w{number}" for number in range(2_000)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    if len(words) < 3:
        return {(word,) for word in words}
    return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}


def jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / max(len(one | other), 1)


def drawn_text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(VOCABULARY, k=words))


def edited(draw: random.Random, text: str, words: int) -> str:
    pieces = text.split()
    for place in draw.sample(range(len(pieces)), words):
        pieces[place] = "other"
    return " ".join(pieces)


def corpus(rows: int = 300, seed: int = 3) -> list[str]:
    """Texts of which every fifth repeats an earlier one with a word or two changed."""
    draw = random.Random(seed)
    texts: list[str] = []
    for row in range(rows):
        copy = row % 5 == 4
        texts.append(edited(draw, draw.choice(texts), draw.randint(0, 2)) if copy else drawn_text(draw))
    return texts


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return float(np.mean(np.asarray(one) == np.asarray(other)))


def test_the_estimate_is_within_four_standard_errors_of_the_exact_similarity() -> None:
    draw = random.Random(1)
    errors = []
    for changes in [0, 1, 2, 3, 5, 8, 12, 20] * 25:
        text = drawn_text(draw)
        other = edited(draw, text, changes)
        exact = jaccard(shingles(text), shingles(other))
        estimate = agreement(*signatures([text, other]))
        assert abs(estimate - exact) <= 4 * sqrt(exact * (1 - exact) / PERMUTATIONS)
        errors.append(estimate - exact)
    assert abs(np.mean(errors)) <= 4 * 0.5 / sqrt(PERMUTATIONS * len(errors))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.text("ab ,.", max_size=12), min_size=1, max_size=8), st.integers(0, 8))
def test_a_signature_depends_on_its_text_alone(texts: list[str], border: int) -> None:
    together = signatures(texts)
    assert together.shape == (len(texts), PERMUTATIONS)
    assert np.array_equal(together, np.concatenate([signatures(texts[:border]), signatures(texts[border:])]))
    assert np.array_equal(together[::-1], signatures(texts[::-1]))


def test_short_texts_are_compared_by_their_words_and_case_and_punctuation_do_not_count() -> None:
    one, other, half, apart = signatures(["Top up!", "top, UP", "top", "card"])
    assert agreement(one, other) == 1.0
    assert agreement(one, half) == pytest.approx(0.5, abs=4 * 0.5 / sqrt(PERMUTATIONS))
    assert agreement(one, apart) == 0.0


def test_texts_without_words_are_like_no_other() -> None:
    rows = signatures(["?", "!", "", "one two three", "..."])
    assert first_of_cluster(rows, 0.5).tolist() == [0, 1, 2, 3, 4]
    assert first_match(rows, rows, 0.5).tolist() == [-1, -1, -1, 3, -1]


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_bands_meet_the_recall_that_is_promised(similarity: float) -> None:
    bands = bands_for(similarity)
    assert 1 - (1 - similarity**bands.width) ** bands.count >= 0.99
    assert bands.count * bands.width <= PERMUTATIONS
    assert bands.least_agreements / PERMUTATIONS == pytest.approx(similarity, abs=1 / PERMUTATIONS)
    assert bands.least_agreements >= similarity * PERMUTATIONS


def clusters_by_brute_force(rows: np.ndarray, similarity: float) -> list[int]:
    first = list(range(len(rows)))
    for row in range(len(rows)):
        for earlier in range(row):
            if agreement(rows[row], rows[earlier]) >= similarity and first[row] != first[earlier]:
                low, high = sorted((first[row], first[earlier]))
                first = [low if value == high else value for value in first]
    return first


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9])
def test_clusters_are_those_of_comparing_every_row_with_every_other(similarity: float) -> None:
    rows = signatures(corpus())
    found = first_of_cluster(rows, similarity).tolist()
    assert found == clusters_by_brute_force(rows, similarity)
    assert sum(row != first for row, first in enumerate(found)) >= 30


def test_clusters_are_the_same_whatever_the_blocks_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = signatures(corpus())
    expected = first_of_cluster(rows, 0.8).tolist()
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 7)
    assert first_of_cluster(rows, 0.8).tolist() == expected
    assert first_of_cluster(np.load(tmp_path / "rows.npy", mmap_mode="r"), 0.8).tolist() == expected


def test_a_cluster_is_named_by_its_first_row_in_any_order_of_the_rows() -> None:
    rows = signatures(corpus())
    first = first_of_cluster(rows, 0.8)
    order = np.random.default_rng(2).permutation(len(rows))
    shuffled = order[first_of_cluster(rows[order], 0.8)]
    names = {int(a): int(b) for a, b in zip(first[order], shuffled, strict=True)}
    assert len(set(names.values())) == len(names) == len(set(first.tolist()))
    assert all(names[int(a)] == b for a, b in zip(first[order], shuffled, strict=True))
    assert (first <= np.arange(len(rows))).all()
    assert np.array_equal(first[first], first)


def test_rows_chained_by_likeness_are_one_cluster() -> None:
    draw = random.Random(4)
    chain = [drawn_text(draw)]
    for _ in range(6):
        chain.append(edited(draw, chain[-1], 1))
    rows = signatures([drawn_text(draw), *chain])
    assert agreement(rows[1], rows[-1]) < 0.8
    assert first_of_cluster(rows, 0.8).tolist() == [0, *[1] * 7]


def test_the_work_grows_with_the_rows_however_large_a_bucket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    agree = near_duplicates._agree

    def counted(left: np.ndarray, left_rows: np.ndarray, *rest: object) -> np.ndarray:
        compared.append(len(left_rows))
        return agree(left, left_rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(near_duplicates, "_agree", counted)
    rows = signatures(["the same text again and again"]).repeat(5_000, axis=0)
    rows[:, 40:] = np.random.default_rng(0).integers(0, 2**32, (5_000, 88))  # in a few buckets all, and yet all unlike
    assert first_of_cluster(rows, 0.8).tolist() == list(range(5_000))
    assert 3 * 5_000 <= sum(compared) <= 3 * 5_000 * bands_for(0.8).count


def test_a_row_meets_the_first_of_a_crowded_bucket_however_many_lie_between() -> None:
    rows = np.random.default_rng(1).integers(0, 2**32, (50, PERMUTATIONS), dtype=np.uint32)
    bands = bands_for(0.8)
    shared = slice(0, 2 * bands.width)
    rows[:, shared] = rows[0, shared]
    rows[-1] = rows[0]
    rows[-1, shared.stop :: bands.width] += 1  # alike enough, and yet in no other bucket together
    assert agreement(rows[0], rows[-1]) >= 0.8
    assert first_of_cluster(rows, 0.8).tolist() == [*range(49), 0]


def test_the_first_match_is_that_of_comparing_with_every_row() -> None:
    draw = random.Random(6)
    others = corpus(200, seed=8)
    texts = [edited(draw, draw.choice(others), draw.randint(0, 6)) for _ in range(150)] + corpus(50, seed=9)
    rows, other_rows = signatures(texts), signatures(others)
    expected = []
    for row in rows:
        alike = [index for index, other in enumerate(other_rows) if agreement(row, other) >= 0.8]
        expected.append(alike[0] if alike else -1)
    assert first_match(rows, other_rows, 0.8).tolist() == expected
    assert 50 <= sum(match >= 0 for match in expected) <= 150


def test_without_rows_there_is_nothing_to_find() -> None:
    none, some = signatures([]), signatures(["a few words here"])
    assert first_of_cluster(none, 0.8).tolist() == []
    assert first_match(none, some, 0.8).tolist() == []
    assert first_match(some, none, 0.8).tolist() == [-1]


def test_a_process_forked_after_the_first_signatures_can_make_its_own() -> None:
    texts = corpus(1_000)
    expected = signatures(texts)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(signatures(texts), expected) else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for threads that it does not have")


def banking_questions(name: str, rows: int) -> list[str]:
    with (DATA / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    return random.Random(0).sample(texts, rows)


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")
def test_real_questions_that_resemble_each_other_are_those_that_exact_similarity_names() -> None:
    train, test = banking_questions("train", 3_000), banking_questions("test", 600)
    train_sets, test_sets = [shingles(text) for text in train], [shingles(text) for text in test]
    most = [max(jaccard(row, other) for other in test_sets) for row in train_sets]
    match = first_match(signatures(train), signatures(test), 0.5)
    margin = 4 * 0.5 / sqrt(PERMUTATIONS)
    for row, (best, other) in enumerate(zip(most, match.tolist(), strict=True)):
        if best >= 0.5 + margin:
            assert other >= 0, train[row]
        if other >= 0:
            assert jaccard(train_sets[row], test_sets[other]) >= 0.5 - margin, (train[row], test[other])
    assert sum(best >= 0.5 + margin for best in most) >= 5
    # how many pairs near 0.5 fall on which side is chance: agreements are binomial
    chances = binom.sf(PERMUTATIONS // 2 - 1, PERMUTATIONS, most)
    deviation = sqrt(float(np.sum(chances * (1 - chances))))
    assert np.count_nonzero(match >= 0) == pytest.approx(float(np.sum(chances)), abs=4 * deviation)
