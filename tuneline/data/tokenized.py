"""The tokens of many texts in flat arrays, and which characters each token holds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tuneline.data.ragged import Places, offsets_of, places_of


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Tokens of texts, one text after another; characters are numbered through all of the texts."""

    ids: NDArray[np.int32]
    begins: Places
    """The first character that each token holds."""
    ends: Places
    """The character behind each token, in rising order."""
    tokens: Places
    """Number of the first token of each text, and after them the number of tokens."""
    characters: Places
    """Number of the first character of each text, and after them the number of characters."""

    @classmethod
    def of_encodings(cls, encodings: Sequence[Any], texts: Sequence[str]) -> Self:
        """Take what `tokenizers` made of texts."""
        characters = offsets_of([len(text) for text in texts])
        counts = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
        places = np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, 2)
        places += np.repeat(characters[:-1], counts)[:, None]
        # A token that holds no character may be given an earlier place.
        return cls(ids, places[:, 0], np.maximum.accumulate(places[:, 1]), offsets_of(counts), characters)

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.tokens) - 1

    def ids_of(self, text: int) -> NDArray[np.int32]:
        """Token ids of a text."""
        return self.ids[self.tokens[text] : self.tokens[text + 1]]

    def tokens_at(self, texts: Places, characters: Places) -> Places:
        """Number the first token that holds a character of a text; the next one where none does."""
        found = np.searchsorted(self.ends, self.characters[texts] + characters, side="right")
        return np.minimum(found, self.tokens[texts + 1])

    def begin_before(self, tokens: Places, texts: Places, characters: Places) -> NDArray[np.bool_]:
        """Tell which tokens hold characters before these; one behind the last token does not."""
        begins = np.append(self.begins, self.characters[-1])
        return np.asarray(begins[tokens] < self.characters[texts] + characters)

    def take(self, texts: Places) -> Self:
        """Choose texts, in any order."""
        counts, lengths = np.diff(self.tokens)[texts], np.diff(self.characters)[texts]
        places, characters = places_of(self.tokens[texts], counts), offsets_of(lengths)
        moved = np.repeat(characters[:-1] - self.characters[texts], counts)
        begins, ends = self.begins[places] + moved, self.ends[places] + moved
        return type(self)(self.ids[places], begins, ends, offsets_of(counts), characters)

    def followed_by(self, other: Self) -> Self:
        """Put other texts behind these."""
        last_token, last_character = self.tokens[-1], self.characters[-1]
        return type(self)(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.begins, other.begins + last_character]),
            np.concatenate([self.ends, other.ends + last_character]),
            np.concatenate([self.tokens, other.tokens[1:] + last_token]),
            np.concatenate([self.characters, other.characters[1:] + last_character]),
        )

    def equals(self, other: Self) -> bool:
        """Tell whether the tokens are the same, at the same places."""
        return all(np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
