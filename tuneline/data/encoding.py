"""Texts to token ids that can be traced back to characters: by the tokenizer itself, or word by word from memory.

Byte-level BPE looks at one word (pre-token) at a time, so that a word's ids can be remembered. `tokenizers` 0.23 takes
230 us for a row of 200 tokens; cutting the text at its spaces and looking the runs up takes 36. That is done where it
is certain to be the same: for tokenizers whose cutting pattern can be said in `re`, and texts of characters that every
Unicode version puts in the same class. It is compared with the tokenizer when it is made, and in one text of
`CHECKED_EVERY` as it works.
"""

import json
import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

CHECKED_EVERY = 256
PROBED_PIECES = 2_000
REMEMBERED_WORDS = 400_000
"""Some 100 MB; beyond it the memory is emptied and begins afresh."""

LETTERS = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
NUMBERS = "0-9\u00b2\u00b3\u00b9\u00bc-\u00be"
KNOWN_TEXT = re.compile("[\t\n\r -~\u00a1-\u012f\u0132-\u017e\u0180-\u024f\u2010-\u2027\u20ac]*")
"""Latin text with punctuation. Left out: spaces beyond ASCII, and the letters that case folding makes ASCII."""
CUT = "\0"
"""Marks a place to cut at; `KNOWN_TEXT` has no zero byte."""
BEFORE_SPACE = f"{CUT} "
BYTE_LEVEL_PATTERN = r" ?\p{L}+| ?\p{N}+|'(?:[stmd]|re|ve|ll)| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `use_regex` stands for, words before contractions: the two never begin alike, and words are tried first."""
_CLASS = re.compile(r"\[[^\]]*\]")


class TokenizedText(Protocol):
    """A text's token ids, and which token a character is in."""

    @property
    def ids(self) -> NDArray[np.int32]:
        """Token ids."""
        ...

    def token_at(self, character: int) -> int:
        """Return the number of the first token that holds the character; of the next one where none does."""
        ...

    def begins_before(self, token: int, character: int) -> bool:
        """Whether a token holds characters before this one."""
        ...


class EncodedText:
    """A text as the tokenizer itself encoded it."""

    def __init__(self, encoding: Any, length: int) -> None:
        """Wrap a `tokenizers.Encoding` of a text of `length` characters."""
        self._encoding, self._length = encoding, length
        self.ids: NDArray[np.int32] = np.array(encoding.ids, dtype=np.int32)

    def token_at(self, character: int) -> int:
        """Return the number of the first token that holds the character; of the next one where none does."""
        for place in range(character, self._length):
            token = self._encoding.char_to_token(place)
            if token is not None:
                return int(token)
        return len(self.ids)

    def begins_before(self, token: int, character: int) -> bool:
        """Whether a token holds characters before this one."""
        return bool(self._encoding.token_to_chars(token)[0] < character)


class RememberedText:
    """A text as the ids of its runs, each token with how far it reaches."""

    def __init__(self, packed: NDArray[np.int32]) -> None:
        """Take ids and steps in turns, as `WordMemory` holds them."""
        self.ids = packed[0::2].copy()
        self._steps = packed[1::2]

    @cached_property
    def _ends(self) -> list[int]:
        """The character behind each token."""
        ends: list[int] = np.cumsum(self._steps >> 1).tolist()
        return ends

    def token_at(self, character: int) -> int:
        """Return the number of the first token that holds the character; of the next one where none does."""
        return bisect_right(self._ends, character)

    def begins_before(self, token: int, character: int) -> bool:
        """Whether a token holds characters before this one."""
        before = self._ends[token - 1] if token else 0
        return before - int(self._steps[token] & 1) < character


class Encoder:
    """Encodes texts as they stand, with a `tokenizers.Tokenizer` that adds nothing."""

    def __init__(self, backend: Any) -> None:
        """Use a tokenizer, and remember its words where that is certain to be the same."""
        self._backend = backend
        self._memory = WordMemory.of(backend)

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenise texts, in order."""
        memory = self._memory
        if memory is None:
            return self._by_backend(texts)
        known = [KNOWN_TEXT.fullmatch(text) is not None for text in texts]
        others = iter(self._by_backend([text for text, simple in zip(texts, known, strict=True) if not simple]))
        return [memory.encode(text) if simple else next(others) for text, simple in zip(texts, known, strict=True)]

    def _by_backend(self, texts: Sequence[str]) -> list[TokenizedText]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [EncodedText(encoding, len(text)) for encoding, text in zip(encodings, texts, strict=True)]


class WordMemory(dict[str, bytes]):
    """The tokens of every run met so far, and how a text is cut into runs.

    A run is a word with what follows it up to the next space or special token: quicker to cut off than words are. Its
    tokens are pairs of int32 as bytes, which join at once: the id, and twice the characters by which the token reaches
    further than the one before it, plus 1 where both hold a part of one character.
    """

    def __init__(self, backend: Any, pattern: re.Pattern[str], special: re.Pattern[str]) -> None:
        """Cut with `pattern` what lies between the special tokens that `special` finds."""
        super().__init__()
        self._backend, self._pattern, self._special = backend, pattern, special
        self._tangled = re.compile(rf"\s (?:\s|\Z|{special.pattern})")
        self._encoded = 0

    @classmethod
    def of(cls, backend: Any) -> Self | None:
        """Make a memory for a tokenizer; None for one whose words cannot be told with certainty."""
        facts = json.loads(backend.to_str())
        pattern = _cutting_pattern(facts)
        if pattern is None:
            return None
        contents = sorted((token["content"] for token in facts["added_tokens"]), key=lambda text: (-len(text), text))
        special = re.compile(f"({'|'.join(map(re.escape, contents))})" if contents else r"((?!))")
        memory = cls(backend, pattern, special)
        probes = [*_probes(contents), *_probes_of_vocabulary(backend)]
        return memory if all(memory._agrees(text) for text in probes) else None

    def __missing__(self, run: str) -> bytes:
        """Join the tokens of a new run's words; ask the tokenizer for a new word."""
        words = self._words(run)
        tokens = b"".join(map(self.__getitem__, words)) if len(words) > 1 else self._ask(run).tobytes()
        if len(self) >= REMEMBERED_WORDS:
            self.clear()
        self[run] = tokens
        return tokens

    def encode(self, text: str) -> RememberedText:
        """Tokenise a text of which `KNOWN_TEXT` holds."""
        self._encoded += 1
        if self._encoded % CHECKED_EVERY == 0:
            assert self._agrees(text), f"words from memory differ from the tokenizer's in {text[:200]!r}"
        return RememberedText(self._packed(text))

    def _packed(self, text: str) -> NDArray[np.int32]:
        return np.frombuffer(b"".join(map(self.__getitem__, self._cut(text))), dtype=np.int32)

    def _cut(self, text: str) -> list[str]:
        """Cut before each space and around special tokens; into words where it matters what is around a space."""
        # White space before a space, and more of it or an end behind: a word may take in both. Most texts have none.
        spaced = "  " in text or "\n " in text or "\t " in text or "\r " in text
        if spaced and self._tangled.search(text):
            return [word for part in self._special.split(text) for word in self._words(part)]
        return CUT.join(self._special.split(text.replace(" ", BEFORE_SPACE))).split(CUT)

    def _words(self, run: str) -> list[str]:
        """Cut a run into words; a special token is one."""
        return [run] if self._special.fullmatch(run) else self._pattern.findall(run)

    def _ask(self, text: str) -> NDArray[np.int32]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        starts, ends = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2).T
        before = np.concatenate([np.zeros(1, dtype=np.int32), ends])[: len(ends)]
        return np.stack([np.array(encoding.ids, dtype=np.int32), 2 * (ends - before) + before - starts], axis=1).ravel()

    def _agrees(self, text: str) -> bool:
        return np.array_equal(self._packed(text), self._ask(text))


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
