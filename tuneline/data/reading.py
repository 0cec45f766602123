"""Sources to tables of examples; every row that is none is named."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import chain

import numpy as np

from tuneline.contracts.errors import UserError
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.receipt import SourceLine
from tuneline.data.cleaning.sensitive import kind_group
from tuneline.data.converting import UNUSABLE, Conversion, Converted, convert
from tuneline.data.ledger import Step, Tally
from tuneline.data.sources.identity import source_identity
from tuneline.data.sources.read import read_chunks
from tuneline.data.sources.resolve import resolve
from tuneline.data.stage import Stage, refusal, spoken
from tuneline.data.table import RowTable, TableWriter

HOPELESS_ROWS = 2_000
"""Rows after which a source of which most cannot be used is given up, rather than read to its end."""
EMPTY_ANSWER = "empty answer"


def read_table(stage: Stage, data_set: str, sources: Iterable[str], hashes: HashCache) -> RowTable:
    """Read the sources of a data set.

    Raises:
        UserError: a source that cannot be read, has no rows, or more unusable ones than `data.limits` allows; under
            the policies `fail`, an empty answer or a secret.
    """
    training = data_set in ("train", "replay")
    near_duplicates = training and stage.spec.cleaning.near_duplicates != "off"
    conversion = Conversion(stage.spec, training=training, signatures=near_duplicates)
    writer = TableWriter(stage.folder / f"{data_set}.table")
    step = stage.ledger.open(data_set, "read", 0)
    for number, source in enumerate(sources):
        _read_source(stage, step, source, number, conversion, writer, hashes)
    table = writer.finish()
    step.rows_out, step.characters_out = len(table), int(table.columns.characters.sum(dtype=np.int64))
    _check_policies(stage, step)
    return table


def _read_source(
    stage: Stage, step: Step, source: str, number: int, conversion: Conversion, writer: TableWriter, hashes: HashCache
) -> None:
    key = f"data.{step.data_set}"
    files = resolve(source, key)
    unusable, formats, rows_read = Tally(), Counter[str](), 0
    chunks = chain.from_iterable(read_chunks(file) for file in files)
    for chunk in stage.workers.map(partial(convert, conversion), chunks):
        writer.append(chunk, number)
        unusable.add(chunk.unusable)
        formats.update(chunk.formats)
        rows_read += chunk.rows_read
        _account(stage, step, chunk)
        stage.progress(step.rows_in, 0, f"read {spoken(step.data_set)}")
        if rows_read >= HOPELESS_ROWS:
            _check_unusable(unusable, rows_read, max(0.5, stage.spec.limits.max_bad_rows_share), f"{key} {source}")
    if rows_read == 0:
        raise UserError.of("the file has no rows", f"{key} {source}", "name a file with at least one row")
    _check_unusable(unusable, rows_read, stage.spec.limits.max_bad_rows_share, f"{key} {source}")
    identity = source_identity(source, key, hashes)
    stage.ledger.sources.append(
        SourceLine(
            data_set=step.data_set,
            path=source,
            files=len(files),
            identity=identity.sha256_or_tag,
            rows_read=rows_read,
            formats=dict(formats),
        )
    )


def _account(stage: Stage, step: Step, chunk: Converted) -> None:
    step.rows_in += chunk.rows_read
    stage.ledger.drop(step, [*chunk.unusable, *chunk.filtered])
    step.noted.add(chunk.found)


def _check_unusable(unusable: Tally, rows_read: int, share: float, where: str) -> None:
    if unusable.total > rows_read * share:
        fix = "mend or remove these rows, tell data.format and data.columns what is what, or raise the limit"
        what = f"{unusable.total:,} of {rows_read:,} rows cannot be used; data.limits.max_bad_rows_share is {share:g}"
        raise refusal(what, where, unusable, (UNUSABLE,), fix)


def _check_policies(stage: Stage, step: Step) -> None:
    cleaning = stage.spec.cleaning
    empty = step.dropped.rows.get(EMPTY_ANSWER, 0)
    if empty and cleaning.empty_answers == "fail":
        what = f"{empty:,} rows have an empty answer"
        raise refusal(what, "data.cleaning.empty_answers", step.dropped, (EMPTY_ANSWER,), "mend or remove these rows")
    for key, group in (("secrets", "secret"), ("personal_data", "personal")):
        kinds = tuple(kind for kind in step.noted.rows if kind_group(kind) == group)
        if kinds and getattr(cleaning, key) == "fail":
            fix = "remove them, or set `redact` or `report`"
            raise refusal(f"rows hold {', '.join(kinds)}", f"data.cleaning.{key}", step.noted, kinds, fix)
