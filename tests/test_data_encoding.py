"""Ids from remembered words are the tokenizer's own, and characters are traced to the same tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from tuneline.data import encoding
from tuneline.data.encoding import Encoder, WordMemory
from tuneline.data.tokenized import TokenizedTexts

BASE = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "base"
PRE_TOKENIZERS = {
    "byte level": None,
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How families cut text into words; None is byte-level BPE's own way, as in GPT-2."""
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=0x250), max_size=12),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>",
                "\n\n",
                "  ",
                " the",
                "'s",
                "'LL",
                "1234",
                " 12",
                "don't",
                "\r\n",
                " ",
                " \n",
                "\n ",
                "\t ",
            ]
        ),
    ),
    max_size=12,
).map("".join)


def backend(family: str) -> Any:
    made = Tokenizer.from_str(AutoTokenizer.from_pretrained(BASE).backend_tokenizer.to_str())
    made.post_processor = processors.Sequence([])
    pattern = PRE_TOKENIZERS[family]
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
        made.normalizer = normalizers.NFC()
    return made


@pytest.fixture(scope="module", params=list(PRE_TOKENIZERS))
def family(request: pytest.FixtureRequest) -> tuple[Any, Encoder]:
    made = backend(request.param)
    return made, Encoder(made)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3))
def test_any_texts_have_the_tokenizers_ids_and_places(family: tuple[Any, Encoder], texts: list[str]) -> None:
    made, encoder = family
    found = encoder.encode(texts)
    encodings = [made.encode(text, add_special_tokens=False) for text in texts]
    assert found.equals(TokenizedTexts.of_encodings(encodings, texts))
    for number, (text, encoding_) in enumerate(zip(texts, encodings, strict=True)):
        assert found.ids_of(number).tolist() == encoding_.ids
        of_text, places = np.full(len(text) + 1, number), np.arange(len(text) + 1)
        tokens = found.tokens_at(of_text, places) - found.tokens[number]
        assert tokens.tolist() == [_token_at(encoding_, place, len(text)) for place in range(len(text) + 1)]
        for token, (start, _) in enumerate(encoding_.offsets):
            before = found.begin_before(np.full(len(places), token + found.tokens[number]), of_text, places)
            assert before.tolist() == [start < place for place in range(len(text) + 1)]


def _token_at(found: Any, character: int, length: int) -> int:
    """Ask the tokenizer for the first token that holds a character, or one behind it."""
    tokens = (found.char_to_token(place) for place in range(character, length))
    return next((token for token in tokens if token is not None), len(found.ids))


def test_plain_text_comes_from_memory_and_other_writing_from_the_tokenizer(
    family: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, encoder = family
    texts = ["plain caf\u00e9 \u2013 \u201cquoted\u201d <|im_end|>\n", "\u0434\u0430", "tab\u00a0space", "plain"]
    remembered: list[str] = []
    encode = WordMemory.encode
    monkeypatch.setattr(WordMemory, "encode", lambda memory, some: remembered.extend(some) or encode(memory, some))
    found = encoder.encode(texts)
    assert remembered == [texts[0], texts[3]]
    assert [found.ids_of(number).tolist() for number in range(4)] == [made.encode(text).ids for text in texts]


def test_texts_are_chosen_and_joined_with_their_places() -> None:
    made = backend("byte level")
    texts = ["", "one two", "", "caf\u00e9 \U0001f600!", "three"]
    found = TokenizedTexts.of_encodings([made.encode(text) for text in texts], texts)
    chosen = [3, 0, 1, 1]
    again = TokenizedTexts.of_encodings([made.encode(texts[place]) for place in chosen], [texts[n] for n in chosen])
    assert found.take(np.array(chosen)).equals(again)
    parts = [found.take(np.array(places, dtype=np.int64)) for places in ([0, 1], [], [2, 3, 4])]
    assert parts[0].followed_by(parts[1]).followed_by(parts[2]).equals(found)


def test_a_word_is_asked_for_once_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = WordMemory.of(backend("byte level"))
    assert memory is not None
    monkeypatch.setattr(encoding, "REMEMBERED_WORDS", len(memory) + 3)
    for number in range(50):
        memory.encode([f"word number {number}"])
        assert len(memory) <= encoding.REMEMBERED_WORDS
    memory.forget()
    memory.encode(["one two one", "two one"])
    assert sorted(memory) == [encoding.BORDER, " one", " two", "one", "two"]


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda made: setattr(made, "normalizer", normalizers.Lowercase()),
        lambda made: setattr(
            made,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"\p{Lu}+|\P{Lu}+"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
        ),
    ],
    ids=["metaspace", "prefix space", "lower case", "a class that is not spelt out"],
)
def test_a_tokenizer_whose_words_cannot_be_told_is_left_to_itself(change: Any) -> None:
    made = backend("byte level")
    change(made)
    assert WordMemory.of(made) is None
    assert Encoder(made).encode(["Hello there"]).ids.tolist() == made.encode("Hello there").ids


def test_a_cut_that_differs_from_the_tokenizers_is_found_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "LETTERS", encoding.LETTERS.replace("a-z", "b-z"))
    for family in PRE_TOKENIZERS:
        assert WordMemory.of(backend(family)) is None
