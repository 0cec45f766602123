"""Runs of 13 words that training rows share with evaluation rows."""

import random
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.data.cleaning.ngrams import NGRAM_WORDS, NgramIndex

WORDS = [f"w{number}" for number in range(100)]


def run(first: int, words: int = NGRAM_WORDS) -> str:
    return " ".join(WORDS[first : first + words])


def brute_force(rows: list[str], evaluation: list[str]) -> list[int]:
    def ngrams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1)}

    sets = [ngrams(text) for text in evaluation]
    return [next((index for index, other in enumerate(sets) if ngrams(row) & other), -1) for row in rows]


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not() -> None:
    index = NgramIndex.build([[run(0, 40)]])
    rows = [f"so {run(5)} it is", f"so {run(5, 12)} it is", f"{run(5, 7)} and {run(12, 6)}", "", run(0, 13).upper()]
    assert index.first_hit(rows).tolist() == [0, -1, -1, -1, 0]
    assert index.first_hit([run(5).replace(" ", ", \n")]).tolist() == [0]


def test_the_first_evaluation_row_is_named_and_hits_do_not_cross_the_border_between_texts() -> None:
    index = NgramIndex.build([["nothing", run(20)], [run(0, 20), run(20)]])
    assert index.first_hit([run(20), run(2), f"{run(2)} {run(20)}"]).tolist() == [1, 2, 1]
    assert index.first_hit([run(0, 7), run(7, 6)]).tolist() == [-1, -1]
    split = NgramIndex.build([[run(0, 7), run(7, 6)]])
    assert split.first_hit([run(0)]).tolist() == [-1]


TEXTS = st.lists(st.lists(st.sampled_from("ab"), max_size=24).map(" ".join), max_size=6)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(TEXTS, TEXTS, st.integers(0, 6))
def test_hits_are_those_of_comparing_every_text_with_every_other(
    rows: list[str], evaluation: list[str], border: int
) -> None:
    index = NgramIndex.build([evaluation[:border], evaluation[border:]])
    assert index.left_out == 0
    assert index.first_hit(rows).tolist() == brute_force(rows, evaluation)


def test_the_index_is_the_same_whatever_the_chunks_and_after_a_round_trip(tmp_path: Path) -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS[:3], k=40)) for _ in range(300)]
    whole = NgramIndex.build([texts])
    whole.save(tmp_path / "index")
    loaded = NgramIndex.load(tmp_path / "index")
    assert isinstance(loaded.ngrams, np.memmap)
    assert isinstance(loaded.rows, np.memmap)
    for other in (NgramIndex.build(texts[start : start + 7] for start in range(0, 300, 7)), loaded):
        assert np.array_equal(whole.ngrams, other.ngrams)
        assert np.array_equal(whole.rows, other.rows)
        assert whole.left_out == other.left_out
    assert (np.diff(whole.ngrams) > 0).all()
    assert np.array_equal(loaded.first_hit(texts), whole.first_hit(texts))


def test_the_template_that_many_evaluation_rows_share_is_no_leak() -> None:
    template = run(40, 14)
    rows = [f"{template} q{number} {' '.join(f'x{number}y{word}' for word in range(20))}" for number in range(100)]
    index = NgramIndex.build([rows])
    assert index.left_out == 2
    assert index.first_hit([template, rows[7]]).tolist() == [-1, 7]
    kept = NgramIndex.build([rows], common_share=1.0)
    assert kept.left_out == 0
    assert kept.first_hit([template, rows[7]]).tolist() == [0, 0]


def test_a_run_in_nine_rows_is_never_taken_for_a_template_and_one_row_counts_once() -> None:
    assert NgramIndex.build([[run(0)] * 9]).left_out == 0
    assert NgramIndex.build([[run(0)] * 10]).left_out == 1
    repeated = " ".join(["again"] * 60)
    assert NgramIndex.build([[repeated, run(0)]]).left_out == 0


def test_a_run_in_exactly_the_share_is_kept_and_in_one_row_more_it_is_left_out() -> None:
    others = [run(number) for number in range(80)]
    assert NgramIndex.build([[*others, *["z " * 13] * 20]], common_share=0.2).left_out == 0
    assert NgramIndex.build([[*others[1:], *["z " * 13] * 21]], common_share=0.2).left_out == 1


def test_an_index_of_nothing_hits_nothing(tmp_path: Path) -> None:
    empty = NgramIndex.build([])
    empty.save(tmp_path / "index")
    for index in (empty, NgramIndex.load(tmp_path / "index"), NgramIndex.build([["too short", ""]])):
        assert index.first_hit([run(0), ""]).tolist() == [-1, -1]
        assert index.first_hit([]).tolist() == []
