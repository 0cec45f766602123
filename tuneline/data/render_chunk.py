"""Examples to prepared rows, a chunk at a time: what a worker does after everything is decided."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.contracts.receipt import SHOWN_SAMPLES, Piece, Sample
from tuneline.contracts.records import IGNORED_LABEL, Example
from tuneline.contracts.spec import ModelSpec
from tuneline.data.ledger import Loss
from tuneline.data.lengths import fit, limits_around, lost_by_truncation
from tuneline.data.masks import count_by_role, last_learned, learned_tokens
from tuneline.data.prepared_rows import item_batch, row_batch
from tuneline.data.rendering import Refused, Rendered, Renderer
from tuneline.data.table import Part
from tuneline.data.tokenizer import ChatTokenizer

NOT_RENDERED = "the template cannot render it"
TWO_BOS = "two BOS tokens"
NOTHING_TO_LEARN = "nothing to learn"
TOO_LONG = "too long"
CUT = "cut to the limit"
ALTERED = "the template leaves out or changes some of its words"
SPELLED = "its words spell a special token"
MERGED = "one token holds the end of a prompt and the start of its answer"
UNROLLED = "one row per answer: the template rewrites earlier turns"


@dataclass(frozen=True)
class Rendering:
    """How the rows of a data set are rendered."""

    base: Path
    model: ModelSpec
    learn: str
    max_length_tokens: int
    over_length: str
    items: bool = False
    """Whether these are rows of an evaluation set."""

    @property
    def renderer(self) -> Renderer:
        """The renderer, loaded once per process; before the workers fork, once in all."""
        return _renderer(self.base, self.model, self.learn)


@lru_cache(maxsize=4)
def _renderer(base: Path, model: ModelSpec, learn: str) -> Renderer:
    return Renderer(ChatTokenizer(base, model), learn)


@dataclass
class Facts:
    """What the receipt tells of rendered rows; sums of chunks are the facts of the whole."""

    lengths_before: list[NDArray[np.int32]] = field(default_factory=list)
    """Tokens of each row before long ones were dropped or cut, and the learned ones among them."""
    learned_before: list[NDArray[np.int32]] = field(default_factory=list)
    lost: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """Learned tokens beyond each of `limits_around(max_length_tokens)`."""
    lengths: list[NDArray[np.int32]] = field(default_factory=list)
    learned: int = 0
    learned_too_long: int = 0
    """Learned tokens of rows that were dropped for their length."""
    by_role: Counter[str] = field(default_factory=Counter)
    learned_by_role: Counter[str] = field(default_factory=Counter)
    ends_with_stop: int = 0
    rejected_tokens: int = 0
    longest_rejected_tokens: int = 0
    desirable: int = 0
    """Rows whose answer is wanted."""

    def add(self, other: "Facts") -> None:
        """Take in the facts of another chunk."""
        self.lengths_before += other.lengths_before
        self.learned_before += other.learned_before
        self.lost = self.lost + other.lost
        self.lengths += other.lengths
        self.learned += other.learned
        self.learned_too_long += other.learned_too_long
        self.by_role.update(other.by_role)
        self.learned_by_role.update(other.learned_by_role)
        self.ends_with_stop += other.ends_with_stop
        self.rejected_tokens += other.rejected_tokens
        self.longest_rejected_tokens = max(self.longest_rejected_tokens, other.longest_rejected_tokens)
        self.desirable += other.desirable


@dataclass(frozen=True)
class RenderedChunk:
    """A chunk's rows, and what became of the others."""

    batch: pa.RecordBatch
    facts: Facts
    examples: int
    refused: list[Loss]
    too_long: list[Loss]
    cut: list[Loss]
    noted: list[Loss]
    samples: list[Sample]


def render(rendering: Rendering, part: Part) -> RenderedChunk:
    """Render some examples, check the masks, and fit the lengths."""
    renderer = rendering.renderer
    tokenizer = renderer.tokenizer
    parsed = [Example.model_validate_json(text) for text in part.examples()]
    outcomes = renderer.render_items(parsed) if rendering.items else renderer.render(parsed)
    sound, refused = _sound(outcomes, tokenizer)
    facts = Facts()
    _measure_before(facts, sound, limits_around(rendering.max_length_tokens))
    kept, too_long, cut = _fitted(sound, rendering)
    facts.learned_too_long = sum(row.tokens.learned for row in too_long)
    _measure_after(facts, kept, tokenizer)
    return RenderedChunk(
        batch=item_batch(kept, tokenizer.answer_text) if rendering.items else row_batch(kept),
        facts=facts,
        examples=len(parsed),
        refused=refused,
        too_long=[_long(row, TOO_LONG) for row in too_long],
        cut=[_long(row, CUT) for row in cut],
        noted=_remarks(sound, tokenizer),
        samples=[mask_lens(row, tokenizer) for row in kept[:SHOWN_SAMPLES]],
    )


def _sound(outcomes: Sequence[Rendered | Refused], tokenizer: ChatTokenizer) -> tuple[list[Rendered], list[Loss]]:
    """Part the rows that can be trained on from those that cannot, with the reason."""
    sound: list[Rendered] = []
    refused: list[Loss] = []
    learned = iter(learned_tokens([row.tokens.labels for row in outcomes if isinstance(row, Rendered)]).tolist())
    for row in outcomes:
        if isinstance(row, Refused):
            refused.append(Loss(row.row_id, NOT_RENDERED, row.why))
        elif fault := _fault(row, next(learned), tokenizer):
            refused.append(Loss(row.row_id, fault))
        else:
            sound.append(row)
    return sound, refused


def _fitted(rows: Sequence[Rendered], rendering: Rendering) -> tuple[list[Rendered], list[Rendered], list[Rendered]]:
    """Fit rows to the limit: those that are left, those that were dropped, and those that were cut."""
    policy = "drop" if rendering.items and rendering.over_length in ("split", "error") else rendering.over_length
    kept: list[Rendered] = []
    too_long: list[Rendered] = []
    cut: list[Rendered] = []
    for row in rows:
        fitted = fit(row, rendering.max_length_tokens, policy)
        kept += fitted.rows
        if not fitted.rows:
            too_long.append(row)
        elif fitted.cut:
            cut.append(row)
    return kept, too_long, cut


def _long(row: Rendered, reason: str) -> Loss:
    return Loss(row.row_id, reason, f"{len(row.tokens.ids):,} tokens")


def mask_lens(row: Rendered, tokenizer: ChatTokenizer) -> Sample:
    """Decode a row into runs of learned and unlearned text, each stop token that ends an answer apart."""
    learned = row.tokens.labels != IGNORED_LABEL
    stops = learned & np.isin(row.tokens.ids, tokenizer.stop_token_ids)
    kinds = learned.astype(np.int8) + stops
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    pieces = [
        Piece(
            text=tokenizer.tokenizer.decode(row.tokens.ids[start:end].tolist()),
            learned=bool(learned[start]),
            stop=bool(stops[start]),
        )
        for start, end in pairwise(borders)
    ]
    return Sample(row_id=row.row_id, pieces=tuple(pieces))


def _fault(row: Rendered, learned: int, tokenizer: ChatTokenizer) -> str | None:
    bos = tokenizer.bos_token_id
    if bos is not None and np.count_nonzero(row.tokens.ids == bos) > 1:
        return TWO_BOS
    return None if learned else NOTHING_TO_LEARN


def _remarks(rows: Sequence[Rendered], tokenizer: ChatTokenizer) -> list[Loss]:
    remarks = [Loss(row.row_id, ALTERED) for row in rows if row.altered]
    remarks += [Loss(row.row_id, MERGED) for row in rows if row.merged_borders]
    remarks += [Loss(row.row_id, UNROLLED) for row in rows if row.unrolled]
    spelling = tokenizer.special_spelling
    for row in rows:
        found = next((match for text in _words(row.example) if (match := spelling.search(text))), None)
        if found:
            remarks.append(Loss(row.row_id, SPELLED, found.group()))
    return remarks


def _words(example: Example) -> list[str]:
    return [example.text] if example.text is not None else [message.content for message in example.messages]


def _measure_before(facts: Facts, rows: Sequence[Rendered], limits_tokens: Sequence[int]) -> None:
    facts.lengths_before.append(np.array([len(row.tokens.ids) for row in rows], dtype=np.int32))
    labels = [row.tokens.labels for row in rows]
    facts.learned_before.append(learned_tokens(labels).astype(np.int32))
    facts.lost = lost_by_truncation(labels, limits_tokens)


def _measure_after(facts: Facts, rows: Sequence[Rendered], tokenizer: ChatTokenizer) -> None:
    facts.lengths.append(np.array([len(row.tokens.ids) for row in rows], dtype=np.int32))
    rejected = [len(row.rejected.ids) for row in rows if row.rejected]
    facts.rejected_tokens, facts.longest_rejected_tokens = sum(rejected), max(rejected, default=0)
    facts.desirable = sum(row.example.desirable is True for row in rows)
    labels = [row.tokens.labels for row in rows]
    by_role, learned_by_role = count_by_role([row.turns for row in rows], labels)
    facts.by_role.update(by_role)
    facts.learned_by_role.update(learned_by_role)
    facts.learned = sum(learned_by_role.values())
    facts.ends_with_stop = int(np.isin(last_learned(labels), tokenizer.stop_token_ids).sum())
