"""Texts to token ids that can be traced back to characters: by the tokenizer itself, or word by word from memory.

Byte-level BPE looks at one word (pre-token) at a time, so that a word's ids can be remembered. `tokenizers` 0.23 takes
230 us for a row of 200 tokens; cutting a chunk of texts at their spaces and looking the runs up takes 16. That is done
where it is certain to be the same: for tokenizers whose cutting pattern can be said in `re`, and texts of characters
that every Unicode version puts in the same class. It is compared with the tokenizer when it is made, and in one text
of `CHECKED_EVERY` as it works.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.data.ragged import offsets_of, places_of
from tuneline.data.tokenized import TokenizedTexts

CHECKED_EVERY = 256
PROBED_PIECES = 2_000
REMEMBERED_WORDS = 400_000
"""Some 100 MB; beyond it the memory is emptied and begins afresh."""

LETTERS = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
NUMBERS = "0-9\u00b2\u00b3\u00b9\u00bc-\u00be"
KNOWN_TEXT = re.compile("[\t\n\r -~\u00a1-\u012f\u0132-\u017e\u0180-\u024f\u2010-\u2027\u20ac]*")
"""Latin text with punctuation. Left out: spaces beyond ASCII, and the letters that case folding makes ASCII."""
BORDER = "\1"
"""A run without tokens, before each text and behind the last; `KNOWN_TEXT` has no such byte."""
WHITE: Final = np.frombuffer(b"\t\n\r ", dtype=np.uint8)
"""The white space of `KNOWN_TEXT`."""
PAIR_BYTES: Final = 8
BYTE_LEVEL_PATTERN = r" ?\p{L}+| ?\p{N}+|'(?:[stmd]|re|ve|ll)| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `use_regex` stands for, words before contractions: the two never begin alike, and words are tried first."""
_CLASS = re.compile(r"\[[^\]]*\]")


class Encoder:
    """Encodes texts as they stand, with a `tokenizers.Tokenizer` that adds nothing."""

    def __init__(self, backend: Any) -> None:
        """Use a tokenizer, and remember its words where that is certain to be the same."""
        self._backend = backend
        self._memory = WordMemory.of(backend)

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise texts, in order."""
        memory = self._memory
        if memory is None:
            return self._by_backend(texts)
        known = [KNOWN_TEXT.fullmatch(text) is not None for text in texts]
        if all(known):
            return memory.encode(texts)
        others = self._by_backend([text for text, simple in zip(texts, known, strict=True) if not simple])
        found = memory.encode([text for text, simple in zip(texts, known, strict=True) if simple])
        return found.followed_by(others).take(np.argsort(np.argsort(~np.array(known), kind="stable")))

    def _by_backend(self, texts: Sequence[str]) -> TokenizedTexts:
        return TokenizedTexts.of_encodings(self._backend.encode_batch(list(texts), add_special_tokens=False), texts)


class WordMemory(dict[str, bytes]):
    """The tokens of every run met so far, and how a text is cut into runs.

    A run is a word with what follows it up to the next space or special token: quicker to cut off than words are. Its
    tokens are pairs of int32 as bytes, which join at once: the id, and twice the characters by which the token reaches
    further than the one before it, plus 1 where both hold a part of one character.
    """

    def __init__(self, backend: Any, pattern: re.Pattern[str], contents: Sequence[str]) -> None:
        """Cut with `pattern` what lies between special tokens of these contents."""
        super().__init__()
        longest_first = sorted(contents, key=lambda text: (-len(text), text))
        special = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if contents else r"((?!))")
        self._backend, self._pattern, self._special, self._contents = backend, pattern, special, frozenset(contents)
        self._special_bytes = re.compile(special.pattern.encode())
        self._tangled = re.compile(rf"\s (?:\s|\Z|{special.pattern})")
        self._encoded = 0
        self.forget()

    @classmethod
    def of(cls, backend: Any) -> Self | None:
        """Make a memory for a tokenizer; None for one whose words cannot be told with certainty."""
        facts = json.loads(backend.to_str())
        pattern = _cutting_pattern(facts)
        if pattern is None:
            return None
        contents = [token["content"] for token in facts["added_tokens"]]
        memory = cls(backend, pattern, contents)
        probes = [*_probes(contents), *_probes_of_vocabulary(backend)]
        return memory if memory._by_words(probes).equals(memory._by_backend(probes)) else None

    def forget(self) -> None:
        """Empty the memory."""
        self.clear()
        self[BORDER] = b""

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise texts of which `KNOWN_TEXT` holds."""
        found = self._by_words(texts)
        checked = range(-self._encoded % CHECKED_EVERY, len(texts), CHECKED_EVERY)
        self._encoded += len(texts)
        expected = self._by_backend([texts[place] for place in checked])
        assert found.take(np.array(checked, dtype=np.int64)).equals(expected), (
            "words from memory differ from the tokenizer's"
        )
        return found

    def _by_words(self, texts: Sequence[str]) -> TokenizedTexts:
        runs, numbers = self._cut(texts)
        known = list(map(self.get, runs))
        if None in known:
            self._learn(runs)
        joined = [self[run] for run in runs]
        counts = np.fromiter(map(len, joined), np.int64, len(joined)) // PAIR_BYTES
        lengths = counts[numbers]
        packed = np.frombuffer(b"".join(joined), dtype=np.int64)  # a pair at a time
        pairs = packed[places_of(offsets_of(counts)[numbers], lengths)].view(np.int32).reshape(-1, 2)
        advances = pairs[:, 1] >> 1
        ends = np.cumsum(advances, dtype=np.int64)
        return TokenizedTexts(
            ids=pairs[:, 0].copy(),
            begins=ends - advances - (pairs[:, 1] & 1),
            ends=ends,
            tokens=np.cumsum(lengths)[numbers == runs.index(BORDER)],
            characters=offsets_of([len(text) for text in texts]),
        )

    def _cut(self, texts: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
        """Cut texts into runs: the different ones, and the number of each one in order.

        Runs are slices of the joined texts, which Arrow compares: 7 us for a row of 120 runs, in Python 20.
        """
        whole = "".join([BORDER, *[f"{text}{BORDER}" for text in texts]]).encode()
        characters = np.frombuffer(whole, dtype=np.uint8)
        cuts = characters == ord(" ")
        spaces, borders = np.flatnonzero(cuts), np.flatnonzero(characters == ord(BORDER))
        special = [place for found in self._special_bytes.finditer(whole) for place in found.span()]
        cuts[special], cuts[borders], cuts[borders[:-1] + 1] = True, True, True
        # White space before a space, and more of it or an end behind: a word may take in both.
        spaced = spaces[np.isin(characters[spaces - 1], WHITE)]
        for text in np.unique(np.searchsorted(borders, spaced) - 1).tolist():
            if self._tangled.search(texts[text]):
                self._cut_into_words(texts[text], cuts[borders[text] + 1 : borders[text + 1]])
        offsets = pa.py_buffer(np.append(np.flatnonzero(cuts), len(whole)))
        runs = pa.LargeStringArray.from_buffers(np.count_nonzero(cuts), offsets, pa.py_buffer(whole))
        encoded = runs.dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()

    def _cut_into_words(self, text: str, cuts: NDArray[np.bool_]) -> None:
        words = [word.encode() for part in self._special.split(text) for word in self._words(part)]
        cuts[:] = False
        cuts[offsets_of([len(word) for word in words])[:-1]] = True

    def _learn(self, runs: Sequence[str]) -> None:
        """Join the tokens of new runs' words; ask the tokenizer for new words."""
        new = [run for run in runs if run not in self]
        if len(self) + len(new) > REMEMBERED_WORDS:
            self.forget()
            new = [run for run in runs if run not in self]
        words_of = {run: self._words(run) for run in new}
        words = list(dict.fromkeys(word for words in words_of.values() for word in words if word not in self))
        self.update(zip(words, self._ask(words), strict=True))
        self.update({run: b"".join([self[word] for word in words]) for run, words in words_of.items()})

    def _words(self, run: str) -> list[str]:
        """Cut a run into words; a special token is one."""
        return [run] if run in self._contents else self._pattern.findall(run)

    def _ask(self, words: Sequence[str]) -> Iterator[bytes]:
        found = self._by_backend(words)
        before = np.concatenate([np.zeros(1, dtype=np.int64), found.ends])[:-1]
        pairs = np.stack([found.ids, 2 * (found.ends - before) + before - found.begins], axis=1).astype(np.int32)
        packed = pairs.tobytes()
        return (packed[start:end] for start, end in pairwise((found.tokens * PAIR_BYTES).tolist()))

    def _by_backend(self, texts: Sequence[str]) -> TokenizedTexts:
        """Ask for one text after another: `encode_batch` is no quicker for words, and starts threads before a fork."""
        encodings = [self._backend.encode(text, add_special_tokens=False) for text in texts]
        return TokenizedTexts.of_encodings(encodings, texts)


def _cutting_pattern(facts: dict[str, Any]) -> re.Pattern[str] | None:
    """Say a tokenizer's pre-tokenizer in `re`; None where it is of another kind."""
    plain_tokens = all(not (t["lstrip"] or t["rstrip"] or t["single_word"]) for t in facts["added_tokens"])
    normal = facts["normalizer"] is None or facts["normalizer"]["type"] == "NFC"  # `KNOWN_TEXT` is composed already
    if facts["model"]["type"] != "BPE" or facts["model"].get("dropout") or not plain_tokens or not normal:
        return None
    pattern = _pattern_of(facts["pre_tokenizer"])
    try:
        return None if pattern is None else re.compile(_in_ranges(pattern))
    except re.error:
        return None


def _pattern_of(pre_tokenizer: dict[str, Any] | None) -> str | None:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return BYTE_LEVEL_PATTERN
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str() as pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _in_ranges(pattern: str) -> str:
    r"""Write `\p{L}` and `\p{N}` as ranges, inside and outside of brackets; other classes are an `re.error` later."""
    inside = _CLASS.sub(lambda found: found.group().replace(r"\p{L}", LETTERS).replace(r"\p{N}", NUMBERS), pattern)
    return inside.replace(r"\p{L}", f"[{LETTERS}]").replace(r"\p{N}", f"[{NUMBERS}]")


def _probes(special: Sequence[str]) -> list[str]:
    """Texts in which a difference in cutting would show: every known character in every kind of company."""
    letters = [chr(code) for code in range(0x20AD) if KNOWN_TEXT.fullmatch(chr(code))]
    company = [" ", "\n", "\t", "\r", "a", "Z", "7", "'", "'s", "'LL", ".", "-", "\u00e9", *special[:50]]
    texts = ["".join(f"{before}{one}{after}" for one in letters) for before in company for after in company[:3]]
    rng = random.Random(0)
    return texts + ["".join(rng.choices(letters + company * 20, k=200)) for _ in range(50)]


def _probes_of_vocabulary(backend: Any) -> list[str]:
    """Texts of the tokenizer's own pieces, side by side and apart: a wrong cut breaks up what it knows."""
    size = backend.get_vocab_size()
    pieces = [backend.decode([token]) for token in range(0, size, max(1, size // PROBED_PIECES))]
    known = [piece for piece in pieces if KNOWN_TEXT.fullmatch(piece)]
    return [joint.join(known[start : start + 50]) for joint in ("", " ", "a") for start in range(0, len(known), 50)]
