"""The mask lens: a training row as the model sees it, cut into what a page or a terminal marks differently."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from tuneline.contracts.receipt import Piece, Sample

LONGEST_UNLEARNED: Final = 600
"""Characters of an unlearned piece that are shown whole."""
KEPT_HEAD: Final = 200
KEPT_TAIL: Final = 300
"""Characters kept of a longer one: more of its end, where the question stands."""
NEWLINE_SIGN: Final = "\u21b5"
TAB_SIGN: Final = "\u21e5"
GROUP_OF_CONTROLS: Final = (
    "\x00-\x09\x0b-\x1f\x7f-\x9f"  # C0 without the newline, DEL, C1
    "\u200b\u200e\u200f\ufeff"  # zero width, marks of direction, byte order mark
    "\u2028-\u202e\u2060-\u2069"  # line and paragraph separators, embeddings, overrides and isolates
)
_CONTROL = re.compile(f"[{GROUP_OF_CONTROLS}]")
_CUT = re.compile(f"(\n|[{GROUP_OF_CONTROLS}]+)")


@dataclass(frozen=True)
class Span:
    """Text of one look: as it is, a character that could not be seen, or a note of what is left out."""

    text: str
    look: Literal["text", "control", "gap"]


@dataclass(frozen=True)
class LensPiece:
    """A piece of a sample, ready to be drawn."""

    spans: tuple[Span, ...]
    learned: bool
    stop: bool


def lens_pieces(sample: Sample) -> tuple[LensPiece, ...]:
    """Cut a sample's pieces into spans; every learned character is kept, long unlearned pieces lose their middle."""
    return tuple(LensPiece(_spans(piece), piece.learned, piece.stop) for piece in sample.pieces)


def visible(text: str) -> str:
    """Write one line of text of unknown origin so that no control character reaches a terminal."""
    return _CONTROL.sub(lambda found: _sign(found[0]), text.replace("\n", NEWLINE_SIGN).replace("\t", TAB_SIGN))


def _spans(piece: Piece) -> tuple[Span, ...]:
    if piece.learned or len(piece.text) <= LONGEST_UNLEARNED:
        return _cut(piece.text)
    left_out = len(piece.text) - KEPT_HEAD - KEPT_TAIL
    gap = Span(f" [... {left_out:,} characters left out ...] ", "gap")
    return (*_cut(piece.text[:KEPT_HEAD]), gap, *_cut(piece.text[-KEPT_TAIL:]))


def _cut(text: str) -> tuple[Span, ...]:
    parts = _CUT.split(text)
    looks: tuple[Literal["text", "control"], ...] = ("text", "control")
    return tuple(Span(_shown(part), looks[place % 2]) for place, part in enumerate(parts) if part)


def _shown(part: str) -> str:
    """Make a part visible; a newline and a tab also do what they do."""
    signed = part.replace("\n", f"{NEWLINE_SIGN}\n").replace("\t", f"{TAB_SIGN}\t")
    return _CONTROL.sub(lambda found: _sign(found[0]), signed)


def _sign(character: str) -> str:
    """Write a control character as Python does: fonts have no sign for most of them."""
    return character if character in "\n\t" else character.encode("unicode_escape").decode("ascii")
