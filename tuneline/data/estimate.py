"""What the prepared data will amount to, from the sources alone: for a plan before anything is prepared."""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.errors import UserError
from tuneline.contracts.records import Example
from tuneline.contracts.spec import RunSpec
from tuneline.data.cleaning.texts import text_of
from tuneline.data.formats.read import read_example
from tuneline.data.lengths import summarise
from tuneline.data.rows import SourceRow, UnusableRow
from tuneline.data.sources.read import read_rows
from tuneline.data.sources.resolve import resolve
from tuneline.data.splitting import replay_count

CHARACTERS_PER_TOKEN = 3.5
"""English text under a vocabulary of 100 thousand comes to 4 to 4.5, under one of 3 thousand to 2.5 to 3."""
TEMPLATE_TOKENS_PER_MESSAGE = 5
"""Role markers and end of turn; ChatML spends 5, Llama 3 spends 4."""
SAMPLED_ROWS = 5_000
"""Rows whose lengths are looked at; the others are counted."""


def estimate_prepared(spec: RunSpec) -> PreparedData:
    """Estimate rows and tokens without a tokenizer, from the first rows of each source.

    Raises:
        UserError: for sources that prepare would refuse too.
    """
    data = spec.data
    rows, examples = _count(data, data.train_sources, "data.train")
    kept = rows if data.held_out else round(rows * (1 - data.held_out_share))
    kept = min(kept, data.max_train_rows or kept)
    if data.replay is not None:
        replayed, more = _count(data, [data.replay], "data.replay")
        count = replay_count(kept, replayed, data.replay_share)
        examples += more[: round(len(examples) * count / max(1, kept))]
        kept += count
    lengths = np.array([min(_length_tokens(example), data.max_length_tokens) for example in examples])
    learned = sum(
        _tokens(example.messages[-1].content if example.messages else text_of(example)) for example in examples
    )
    return PreparedData(
        kind=examples[0].kind,
        train_rows=kept,
        held_out_rows=0,
        retention_rows=0,
        train_tokens=round(float(lengths.mean()) * kept),
        learned_tokens=round(min(learned, int(lengths.sum())) / len(examples) * kept),
        packs=0,
        lengths=summarise(lengths),
        stop_token_ids=(),
        template_sha256="",
        receipt_sha256="",
    )


def _count(spec: DataSpec, sources: Iterable[str], key: str) -> tuple[int, list[Example]]:
    """Count the rows of some sources, and read the first of each."""
    total, examples = 0, []
    for source in sources:
        sample: list[Example] = []
        for row in chain.from_iterable(read_rows(file) for file in resolve(source, key)):
            total += 1
            if len(sample) < SAMPLED_ROWS and isinstance(row, SourceRow):
                sample += _read(row, spec)
        if not sample:
            raise UserError.of("no row of it can be used", f"{key} {source}", "`tuneline data inspect` says why")
        examples += sample
    return total, examples


def _read(row: SourceRow, spec: DataSpec) -> list[Example]:
    try:
        return [read_example(row, spec)]
    except UnusableRow:
        return []  # prepare names and counts it; an estimate goes by the others


def _length_tokens(example: Example) -> int:
    return _tokens(text_of(example)) + TEMPLATE_TOKENS_PER_MESSAGE * len(example.messages)


def _tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)
