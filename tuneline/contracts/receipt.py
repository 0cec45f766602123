"""The receipt of the prepare stage: every row and token that came in, where it went, and why."""

from collections.abc import Mapping
from typing import Final

from tuneline.contracts.artifacts import LengthSummary, Record

SHOWN_EXAMPLES: Final = 20
"""Row ids that a receipt names for each reason; `PreparedData.DROPPED` has them all."""
SHOWN_SAMPLES: Final = 3
"""Training rows that a receipt shows with their masks."""


class SourceLine(Record):
    """A source that was read."""

    data_set: str
    """`train`, `replay`, `held_out` or `retention`."""
    path: str
    files: int
    identity: str
    """sha256 of the files' bytes, or what stands for them where they are far away (an ETag, a commit)."""
    rows_read: int
    formats: Mapping[str, int]
    """Rows by format, as detected or set."""


class Reason(Record):
    """Rows that share a fate; `examples` names the first of them (`file:line`, with a note where one helps)."""

    reason: str
    rows: int
    examples: tuple[str, ...]


class StepLine(Record):
    """What a step did to the rows of a data set."""

    data_set: str
    step: str
    rows_in: int
    rows_out: int
    tokens_out: int
    tokens_estimated: bool
    """Before rendering, tokens are characters times the ratio that the rendered rows have."""
    dropped: tuple[Reason, ...] = ()
    noted: tuple[Reason, ...] = ()
    """Rows that stay, with something that a person should know."""


class RowCounts(Record):
    """Rows of each prepared data set."""

    train: int
    held_out: int
    retention: int


class TokenCounts(Record):
    """Tokens of the training set, those of them that carry a label, and both by the role whose turn they stand in."""

    train: int
    learned: int
    by_role: Mapping[str, int]
    learned_by_role: Mapping[str, int]


class LengthLimit(Record):
    """What a limit on the length would cost the training set."""

    limit_tokens: int
    rows_over: int
    learned_share_lost_by_drop: float
    learned_share_lost_by_truncate_right: float


class LengthBin(Record):
    """Training rows of `from_tokens` to `to_tokens` (both included)."""

    from_tokens: int
    to_tokens: int
    rows: int


class MaskChecks(Record):
    """Figures that show at a glance whether the masks are right."""

    ends_with_stop_share: float
    """Rows whose last learned token stops the model: below 1 it learns to run on."""
    learned_share: float
    nothing_to_learn_rows: int
    """Rows that were left out since no token of theirs is learned."""
    two_bos_rows: int
    """Rows that were left out for a second beginning-of-sequence token."""
    merged_border_rows: int
    """Rows in which one token holds the end of a prompt and the start of its answer; such a token is not learned."""
    altered_rows: int
    """Rows of which the chat template leaves out or changes some content."""
    unrolled_rows: int
    """Rows made one per answer, since the template rewrites earlier turns as a conversation grows."""


class LeakLine(Record):
    """Training rows that stand in an evaluation set too."""

    data_set: str
    """`held_out` or `retention`."""
    exact_prompts: Reason
    ngrams: Reason
    """Rows that share a run of 13 words."""
    similar: Reason
    """Rows that are near-duplicates by MinHash."""
    items: int
    """Rows of the evaluation set."""
    items_touched: int
    """Rows of the evaluation set that training rows repeat; of several that one row repeats in part, only the first."""
    ngrams_left_out: int = 0
    """Runs of words that so many evaluation rows share that they are their prompt template."""


class PackingLine(Record):
    """What packing the training rows into rows of `data.max_length_tokens` comes to; capacity is that of all packs."""

    packs: int
    capacity_tokens: int
    """Tokens that one pack has room for."""
    total_efficiency: float
    """Tokens over capacity."""
    learned_efficiency: float
    """Learned tokens over capacity."""
    unpacked_efficiency: float
    """Tokens over capacity when every row is padded to the longest one."""


class Piece(Record):
    """A run of tokens, learned or only read; `stop` marks a token that ends an answer."""

    text: str
    learned: bool
    stop: bool = False


class Sample(Record):
    """A training row as the model sees it."""

    row_id: str
    pieces: tuple[Piece, ...]


class TemplateFacts(Record):
    """The chat template that training, evaluation and the server share."""

    sha256: str
    text: str
    prefix_stable: bool
    """Whether a conversation's beginning is rendered the same whatever follows, in every row of this run."""


class Receipt(Record):
    """The whole account of a prepare stage."""

    kind: str
    sources: tuple[SourceLine, ...]
    steps: tuple[StepLine, ...]
    rows: RowCounts
    tokens: TokenCounts
    lengths: LengthSummary
    length_histogram: tuple[LengthBin, ...]
    length_limits: tuple[LengthLimit, ...]
    checks: MaskChecks
    leaks: tuple[LeakLine, ...]
    packing: PackingLine
    samples: tuple[Sample, ...]
    template: TemplateFacts
    seed: int
