"""The mask lens in a terminal: learned tokens in colour, or between brackets where there are no colours."""

from itertools import groupby

from rich.console import Console
from rich.text import Text

from evaluation.report_lens import LensPiece, lens_pieces
from tuneline.contracts.receipt import Sample

LEARNED, STOP, READ = "black on green", "black on yellow", ""
QUIET = {"text": "", "control": "dim", "gap": "italic cyan"}
OPENING, CLOSING = "\u27e6", "\u27e7"
STOP_SIGN = "\u25a0"


def has_colours(out: Console) -> bool:
    """Whether backgrounds reach the reader: not in a pipe, nor under NO_COLOR."""
    return out.color_system is not None and not out.no_color


def legend(coloured: bool) -> Text:
    """Say how the lens marks what."""
    if coloured:
        return Text.assemble(("learned", LEARNED), "  ", (f"stop token{STOP_SIGN}", STOP), "  only read")
    return Text(f"{OPENING}learned{CLOSING}  stop token{STOP_SIGN}  only read")


def lens_text(sample: Sample, coloured: bool) -> Text:
    """Draw a sample; it keeps every learned character, so print it without wrapping."""
    text = Text()
    for learned, pieces in groupby(lens_pieces(sample), key=lambda piece: piece.learned):
        bracketed = learned and not coloured
        text.append(OPENING if bracketed else "")
        for piece in pieces:
            _append(text, piece)
        text.append(CLOSING if bracketed else "")
    return text


def _append(text: Text, piece: LensPiece) -> None:
    ground = STOP if piece.stop and piece.learned else LEARNED if piece.learned else READ
    for span in piece.spans:
        text.append(span.text, f"{ground} {QUIET[span.look]}".strip())
    if piece.stop:
        text.append(STOP_SIGN, ground)
