"""Chosen rows to the files of the prepared data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.contracts.receipt import SHOWN_SAMPLES, LengthLimit, Sample
from tuneline.data.leaks import Selection
from tuneline.data.ledger import Step, Tally
from tuneline.data.lengths import limit_costs
from tuneline.data.prepared_rows import ITEM_SCHEMA, ROW_SCHEMA
from tuneline.data.render_chunk import Facts, RenderedChunk, Rendering, render
from tuneline.data.stage import Stage, spoken


@dataclass
class RenderedSet:
    """A prepared data set, as the receipt wants to know it."""

    facts: Facts = field(default_factory=Facts)
    samples: list[Sample] = field(default_factory=list)
    examples: int = 0
    """Examples that went in."""
    rows: int = 0
    """Rows that came out."""
    characters: int = 0
    refused: Tally = field(default_factory=Tally)
    noted: Tally = field(default_factory=Tally)
    too_long: Tally = field(default_factory=Tally)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row that came out."""
        return _joined(self.facts.lengths)

    @property
    def lengths_before(self) -> NDArray[np.int32]:
        """Tokens of each row before long ones were dropped or cut."""
        return _joined(self.facts.lengths_before)

    def length_limits(self, limit_tokens: int) -> tuple[LengthLimit, ...]:
        """Tell what each limit on the length would cost, the one in use among them."""
        return limit_costs(self.lengths_before, _joined(self.facts.learned_before), self.facts.lost, limit_tokens)


def render_set(stage: Stage, rendering: Rendering, selections: Sequence[Selection], path: Path) -> RenderedSet:
    """Render selections one after another into one file; a set without rows leaves none."""
    whole = RenderedSet()
    schema = ITEM_SCHEMA if rendering.items else ROW_SCHEMA
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for selection in selections:
            _render_selection(stage, rendering, selection, whole, writer)
    if whole.rows == 0:
        path.unlink()
    return whole


def _render_selection(
    stage: Stage, rendering: Rendering, selection: Selection, whole: RenderedSet, writer: pa.ipc.RecordBatchStreamWriter
) -> None:
    rendered = stage.ledger.open(selection.data_set, "render", len(selection.rows))
    fitted = stage.ledger.open(selection.data_set, "fit the length", 0)
    rendered.tokens_out = fitted.tokens_out = 0
    done = 0
    for chunk in stage.workers.map(partial(render, rendering), selection.table.parts(selection.rows)):
        writer.write_batch(chunk.batch)
        _account(stage, rendered, fitted, chunk)
        _add(whole, chunk)
        done += chunk.examples
        stage.progress(done, len(selection.rows), f"render {spoken(selection.data_set)}")
    fitted.rows_in = rendered.rows_out
    whole.examples += len(selection.rows)
    whole.characters += int(selection.table.columns.characters[selection.rows].sum(dtype=np.int64))


def _account(stage: Stage, rendered: Step, fitted: Step, chunk: RenderedChunk) -> None:
    stage.ledger.drop(rendered, chunk.refused)
    stage.ledger.drop(fitted, chunk.too_long)
    rendered.noted.add(chunk.noted)
    fitted.noted.add(chunk.cut)
    before, after = _joined(chunk.facts.lengths_before), _joined(chunk.facts.lengths)
    rendered.rows_out += len(before)
    rendered.tokens_out = (rendered.tokens_out or 0) + int(before.sum())
    fitted.rows_out += len(after)
    fitted.tokens_out = (fitted.tokens_out or 0) + int(after.sum())


def _add(whole: RenderedSet, chunk: RenderedChunk) -> None:
    whole.facts.add(chunk.facts)
    whole.samples += chunk.samples[: SHOWN_SAMPLES - len(whole.samples)]
    whole.rows += chunk.batch.num_rows
    whole.refused.add(chunk.refused)
    whole.noted.add(chunk.noted)
    whole.too_long.add(chunk.too_long)


def _joined(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, dtype=np.int32), *parts])
