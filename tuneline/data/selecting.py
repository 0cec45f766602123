"""Which of the rows that were read go where: repeats, conflicts, the mix, the split, the draws; each step counted."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.errors import UserError
from tuneline.data import splitting
from tuneline.data.cleaning.near_duplicates import first_of_cluster
from tuneline.data.leaks import Selection
from tuneline.data.ledger import Loss, Step
from tuneline.data.stage import Stage, refusal
from tuneline.data.table import RowTable

REPEAT = "repeats another row"
NEAR_REPEAT = "nearly repeats another row"
CONFLICT = "same prompt as another row, other answer"
HELD_OUT = "held out"
NOT_DRAWN = "not drawn"
OVER_WEIGHT = "more than its source's weight allows"
NAMED_AT_ONCE = 100_000

Rows = NDArray[np.int64]


def everything(data_set: str, table: RowTable) -> Selection:
    """Select all rows of a table."""
    return Selection(data_set, table, np.arange(len(table)))


def without_repeats(stage: Stage, selection: Selection) -> Selection:
    """Drop exact duplicates and near-duplicates, and settle conflicts, as `data.cleaning` says.

    Raises:
        UserError: under `conflicts: fail`.
    """
    cleaning = stage.spec.cleaning
    if cleaning.duplicates == "drop":
        first = splitting.first_of(selection.table.columns.whole_keys[selection.rows])
        selection = _drop_repeats(stage, selection, "drop duplicates", REPEAT, first)
    if cleaning.near_duplicates != "off":
        first = first_of_cluster(selection.table.signatures(selection.rows), cleaning.similarity)
        if cleaning.near_duplicates == "drop":
            selection = _drop_repeats(stage, selection, "drop near-duplicates", NEAR_REPEAT, first)
        else:
            step = _open(stage, selection, "find near-duplicates")
            step.noted.add(_repeats(selection, first, NEAR_REPEAT))
    return _settle_conflicts(stage, selection)


def _settle_conflicts(stage: Stage, selection: Selection) -> Selection:
    columns, rows = selection.table.columns, selection.rows
    conflicting = np.flatnonzero(splitting.conflicting(columns.prompt_keys[rows], columns.whole_keys[rows]))
    if not len(conflicting):
        return selection
    first = splitting.first_of(columns.prompt_keys[rows])
    losses = _losses(selection, conflicting, CONFLICT, first)
    if stage.spec.cleaning.conflicts == "drop":
        keeps = columns.whole_keys[rows] == columns.whole_keys[rows[first]]
        return _keep(stage, selection, "settle conflicts", keeps, _losses(selection, ~keeps, CONFLICT, first))
    step = _open(stage, selection, "find conflicts")
    step.noted.add(losses)
    if stage.spec.cleaning.conflicts == "fail":
        what = f"{len(conflicting):,} rows have the same prompt as another one and a different answer"
        fix = "mend them, or set `keep` (learn them all) or `drop` (keep the first)"
        raise refusal(what, "data.cleaning.conflicts", step.noted, (CONFLICT,), fix)
    return selection


def weighted(stage: Stage, selection: Selection, weights: Sequence[float]) -> Selection:
    """Take of each source as many rows as its weight says; a single source is taken whole."""
    if len(weights) < 2:
        return selection
    sources = selection.table.sources[selection.rows]
    counts = [int((sources == number).sum()) for number in range(len(weights))]
    if 0 in counts:
        raise UserError.of("a source has no rows left for the mix", "data.train", "remove it, or give it more rows")
    keeps = np.zeros(len(sources), dtype=np.bool_)
    for number, count in enumerate(splitting.weighted_counts(counts, weights)):
        places = np.flatnonzero(sources == number)
        keys = selection.table.columns.whole_keys[selection.rows[places]]
        keeps[places[splitting.draw(keys, count, stage.spec.seed)]] = True
    return _keep(stage, selection, "mix by weight", keeps, _losses(selection, ~keeps, OVER_WEIGHT))


def split(stage: Stage, selection: Selection) -> tuple[Selection, Selection]:
    """Hold out rows of the training source itself: by group, by time, or by a hash of the prompt."""
    columns, spec = selection.table.columns, stage.spec
    if spec.held_out_time is not None:
        assert columns.times is not None
        held_out = splitting.held_out_by_time(columns.times[selection.rows], spec.held_out_share)
    else:
        groups = columns.prompt_keys if columns.groups is None else columns.groups
        held_out = splitting.held_out_by_group(groups[selection.rows], spec.held_out_share, spec.seed)
    other = Selection("held_out", selection.table, selection.rows[held_out])
    _open(stage, other, "split")
    train = _keep(stage, selection, "split", ~held_out, _losses(selection, held_out, HELD_OUT))
    return train, other


def drawn(stage: Stage, selection: Selection, limit: int | None, name: str) -> Selection:
    """Draw at most `limit` rows."""
    chosen = splitting.draw(selection.table.columns.whole_keys[selection.rows], limit, stage.spec.seed)
    if len(chosen) == len(selection.rows):
        return selection
    keeps = np.zeros(len(selection.rows), dtype=np.bool_)
    keeps[chosen] = True
    return _keep(stage, selection, name, keeps, _losses(selection, ~keeps, NOT_DRAWN))


def dropped(
    stage: Stage, selection: Selection, name: str, drops: NDArray[np.bool_], losses: Iterable[Loss]
) -> Selection:
    """Drop rows that another module chose and named."""
    return _keep(stage, selection, name, ~drops, losses)


def _drop_repeats(stage: Stage, selection: Selection, name: str, reason: str, first: Rows) -> Selection:
    keeps = first == np.arange(len(first))
    return _keep(stage, selection, name, keeps, _repeats(selection, first, reason))


def _repeats(selection: Selection, first: Rows, reason: str) -> Iterator[Loss]:
    return _losses(selection, first != np.arange(len(first)), reason, first)


def _losses(
    selection: Selection, which: NDArray[np.bool_] | Rows, reason: str, first: Rows | None = None
) -> Iterator[Loss]:
    """Name rows, with the row that each repeats; some at a time, since they may be millions."""
    places = np.flatnonzero(which) if which.dtype == np.bool_ else which
    for start in range(0, len(places), NAMED_AT_ONCE):
        part = places[start : start + NAMED_AT_ONCE]
        names = selection.table.names(selection.rows[part])
        if first is None:
            yield from (Loss(name, reason) for name in names)
            continue
        others = selection.table.names(selection.rows[first[part]])
        for name, other in zip(names, others, strict=True):
            yield Loss(name, reason, f"repeats {other}" if other != name else "the first of them")


def _keep(stage: Stage, selection: Selection, name: str, keeps: NDArray[np.bool_], losses: Iterable[Loss]) -> Selection:
    step = _open(stage, selection, name)
    kept = Selection(selection.data_set, selection.table, selection.rows[keeps])
    stage.ledger.drop(step, losses)
    _close(step, kept)
    return kept


def _open(stage: Stage, selection: Selection, name: str) -> Step:
    step = stage.ledger.open(selection.data_set, name, len(selection.rows))
    _close(step, selection)
    return step


def _close(step: Step, selection: Selection) -> None:
    step.rows_out = len(selection.rows)
    step.characters_out = int(selection.table.columns.characters[selection.rows].sum(dtype=np.int64))
