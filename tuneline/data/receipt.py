"""The receipt: every row and token that came in, where it went, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuneline.contracts.artifacts import LengthSummary, Record
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.data.rendering import ChatRenderer, Rendered

SHOWN_EXAMPLES = 20
SHOWN_SAMPLES = 3


class SourceLine(Record):
    """A file or Hub dataset that was read."""

    name: str
    path: str
    sha256: str
    rows_read: int


class StepLine(Record):
    """What a step did to the rows; `dropped` counts by reason, `examples` name some of them."""

    step: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    examples: tuple[str, ...] = ()


class RowCounts(Record):
    """Rows of each prepared data set."""

    train: int
    held_out: int
    retention: int


class TokenCounts(Record):
    """Tokens of the training set, and those of them that carry a label."""

    train: int
    learned: int


class MaskChecks(Record):
    """Shares that show at a glance whether the masks are right."""

    ends_with_stop_share: float
    """Rows whose last learned token stops the model: below 1 it learns to run on."""
    learned_share: float
    prompts_in_both: int
    """Held-out prompts that also stand in the training rows, word for word."""


class Piece(Record):
    """A run of tokens, learned or only read."""

    text: str
    learned: bool


class Sample(Record):
    """A training row as the model sees it."""

    row_id: str
    pieces: tuple[Piece, ...]


class TemplateFacts(Record):
    """The chat template that training, evaluation and the server share."""

    sha256: str
    text: str


class Receipt(Record):
    """The whole account of a prepare stage."""

    sources: tuple[SourceLine, ...]
    steps: tuple[StepLine, ...]
    rows: RowCounts
    tokens: TokenCounts
    lengths: LengthSummary
    checks: MaskChecks
    samples: tuple[Sample, ...]
    template: TemplateFacts
    seed: int


@dataclass
class Ledger:
    """The receipt's first two parts, filled in while the rows go through the steps."""

    sources: list[SourceLine]
    steps: list[StepLine]

    def step(self, name: str, rows_in: int, rows_out: int, dropped: Mapping[str, Sequence[str]]) -> None:
        """Note a step; `dropped` maps a reason to the names of the rows."""
        examples = [row_id for row_ids in dropped.values() for row_id in row_ids][:SHOWN_EXAMPLES]
        counts = {reason: len(row_ids) for reason, row_ids in dropped.items() if row_ids}
        self.steps.append(
            StepLine(step=name, rows_in=rows_in, rows_out=rows_out, dropped=counts, examples=tuple(examples))
        )


def check_masks(train: Sequence[Rendered], held_out: Sequence[Rendered], stop_token_ids: Sequence[int]) -> MaskChecks:
    """Compute the shares of the receipt's checks."""
    stops = set(stop_token_ids)
    ending = sum(last_learned_token(row) in stops for row in train)
    tokens = sum(len(row.input_ids) for row in train)
    prompts = {tuple(row.prompt_ids) for row in train}
    return MaskChecks(
        ends_with_stop_share=ending / len(train),
        learned_share=sum(row.learned_tokens for row in train) / tokens,
        prompts_in_both=sum(tuple(row.prompt_ids) in prompts for row in held_out),
    )


def last_learned_token(row: Rendered) -> int | None:
    """Id of the last token that carries a label."""
    return next((label for label in reversed(row.labels) if label != IGNORED_LABEL), None)


def show_mask(rows: Sequence[Rendered], renderer: ChatRenderer) -> tuple[Sample, ...]:
    """Decode the first rows into runs of learned and unlearned text."""
    return tuple(Sample(row_id=row.row_id, pieces=tuple(_pieces(row, renderer))) for row in rows[:SHOWN_SAMPLES])


def _pieces(row: Rendered, renderer: ChatRenderer) -> list[Piece]:
    flags = [label != IGNORED_LABEL for label in row.labels]
    borders = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1]), len(flags)]
    return [
        Piece(text=renderer.tokenizer.decode(row.input_ids[start:end]), learned=flags[start])
        for start, end in pairwise(borders)
    ]
