"""The rows of every data set of a run, read and chosen, before anything is tokenised."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tuneline.contracts.errors import UserError
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.receipt import LeakLine
from tuneline.data import selecting
from tuneline.data.leaks import Leaking, Selection, report_leaks
from tuneline.data.ledger import Loss, Tally
from tuneline.data.reading import read_table
from tuneline.data.splitting import replay_count
from tuneline.data.stage import Stage, refusal


@dataclass(frozen=True)
class Chosen:
    """What is trained on and what is asked."""

    training: tuple[Selection, ...]
    """New rows, then replayed ones."""
    evaluation: tuple[Selection, ...]
    """`held_out`, and `retention` where the config names one."""
    leaks: tuple[LeakLine, ...]
    kind: str


def choose(stage: Stage, hashes: HashCache) -> Chosen:
    """Read and choose.

    Raises:
        UserError: unusable sources, a split that leaves one side empty, rows of several kinds, or what a policy
            `fail` forbids.
    """
    spec = stage.spec
    train = _training(stage, "train", list(spec.train_sources), hashes)
    train = selecting.weighted(stage, train, [weight or 1.0 for weight in spec.train_sources.values()])
    if spec.held_out is None:
        train, held_out = selecting.split(stage, train)
    else:
        held_out = selecting.everything("held_out", read_table(stage, "held_out", [spec.held_out], hashes))
    _check_sides(train, held_out)
    replay = _training(stage, "replay", [spec.replay], hashes) if spec.replay is not None else None
    evaluation = [held_out]
    if spec.retention is not None:
        evaluation.append(selecting.everything("retention", read_table(stage, "retention", [spec.retention], hashes)))
    evaluation = [selecting.drawn(stage, one, spec.max_held_out_rows, "draw") for one in evaluation]
    kind = _kind([train, *evaluation, *([replay] if replay else [])])
    training, leaks = _leaks(stage, [train, *([replay] if replay else [])], evaluation)
    training[0] = selecting.drawn(stage, training[0], spec.max_train_rows, "draw")
    if replay:
        count = replay_count(len(training[0].rows), len(training[1].rows), spec.replay_share)
        training[1] = selecting.drawn(stage, training[1], count, f"draw {spec.replay_share:.0%} replay")
    return Chosen(tuple(training), tuple(evaluation), leaks, kind)


def _training(stage: Stage, data_set: str, sources: list[str], hashes: HashCache) -> Selection:
    table = read_table(stage, data_set, sources, hashes)
    return selecting.without_repeats(stage, selecting.everything(data_set, table))


def _check_sides(train: Selection, held_out: Selection) -> None:
    if not len(train.rows) or not len(held_out.rows):
        raise UserError.of(
            f"the split leaves {len(train.rows)} rows to train on and {len(held_out.rows)} held out",
            "data.held_out_share",
            "give more rows, another share, or a file in data.held_out",
        )


def _kind(selections: list[Selection]) -> str:
    kinds = sum((selection.table.kinds for selection in selections), Counter[str]())
    if len(kinds) > 1:
        found = ", ".join(f"{count:,} of kind {kind}" for kind, count in kinds.most_common())
        fix = "one run learns one kind: set data.format, or take the other rows out"
        raise UserError.of(f"the rows are of several kinds: {found}", "data", fix)
    return next(iter(kinds))


def _leaks(
    stage: Stage, training: list[Selection], evaluation: list[Selection]
) -> tuple[list[Selection], tuple[LeakLine, ...]]:
    """Compare training with evaluation rows, and do as `data.leaks` says."""
    lines: list[LeakLine] = []
    by_selection: list[list[Leaking]] = [[] for _ in training]
    for one in evaluation:
        line, leaking = report_leaks(stage, training, one)
        lines.append(line)
        for found, of_selection in zip(leaking, by_selection, strict=True):
            of_selection.append(found)
    drops = [np.any([found.flags for found in of_selection], axis=0) for of_selection in by_selection]
    if not any(drop.any() for drop in drops) or stage.spec.leaks == "report":
        return training, tuple(lines)
    if stage.spec.leaks == "fail":
        tally = Tally()
        for found in chain.from_iterable(by_selection):
            found.count(tally)
        what = f"{sum(int(drop.sum()) for drop in drops):,} training rows stand in an evaluation set too"
        fix = "set data.leaks to drop_from_train or report, or mend the files"
        raise refusal(what, "data.leaks", tally, tuple(tally.rows), fix)
    kept = [
        selecting.dropped(stage, selection, "drop leaks", drop, _once_each(of_selection))
        for selection, drop, of_selection in zip(training, drops, by_selection, strict=True)
    ]
    return kept, tuple(lines)


def _once_each(leaking: list[Leaking]) -> Iterator[Loss]:
    """Name each leaking row once, though it may leak into two sets."""
    named: set[str] = set()
    for loss in chain.from_iterable(found.once_each() for found in leaking):
        if loss.row_id not in named:
            yield loss
        if len(leaking) > 1:
            named.add(loss.row_id)
