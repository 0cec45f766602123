"""Words and runs of words, hashed for a whole chunk at once, against the same thing done one word at a time."""

import re
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.data.cleaning.texts import key_of
from tuneline.data.cleaning.words import HashedRows, hashed_runs, hashed_words

TEXTS = st.lists(st.text("aB9_ .,-\n\t\u00fc\u00df\u2019\u2014", max_size=30), max_size=6)


def rows_of(hashed: HashedRows) -> list[list[int]]:
    borders = hashed.offsets.tolist()
    return [hashed.hashes[start:stop].tolist() for start, stop in pairwise(borders)]


@settings(deadline=None, derandomize=True)
@given(TEXTS)
def test_the_words_are_those_of_a_regular_expression_in_lower_case(texts: list[str]) -> None:
    expected = [[key_of(word) for word in re.findall(r"\w+", text.lower())] for text in texts]
    assert rows_of(hashed_words(texts)) == expected


@settings(deadline=None, derandomize=True)
@given(TEXTS, st.integers(1, 4))
def test_a_run_of_words_has_its_hash_wherever_it_stands(texts: list[str], length: int) -> None:
    seen: dict[tuple[str, ...], int] = {}
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    hashed = rows_of(hashed_runs(hashed_words(texts), length))
    assert [len(row) for row in hashed] == [max(len(row) - length + 1, 0) for row in words]
    for row, hashes in zip(words, hashed, strict=True):
        for start, value in enumerate(hashes):
            assert seen.setdefault(tuple(row[start : start + length]), value) == value
    assert len(set(seen.values())) == len(seen)


def test_scripts_without_spaces_count_each_character_as_a_word() -> None:
    chinese, mixed, hindi = rows_of(
        hashed_words(
            [
                "\u6211\u7684\u5361\u8fd8\u6ca1\u5230\u3002",
                "GPT\u6a21\u578bv2",
                "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902",
            ]
        )
    )
    assert chinese == [key_of(character) for character in "\u6211\u7684\u5361\u8fd8\u6ca1\u5230"]
    assert mixed == [key_of(word) for word in ("gpt", "\u6a21", "\u578b", "v2")]
    assert len(hindi) == 2  # its vowel signs are marks within words


def test_half_a_surrogate_pair_is_no_word() -> None:
    assert rows_of(hashed_words(["one \ud800 two"])) == rows_of(hashed_words(["one two"]))


def test_no_texts_have_no_words() -> None:
    assert np.array_equal(hashed_words([]).offsets, [0])
    assert rows_of(hashed_words(["", " .,"])) == [[], []]
