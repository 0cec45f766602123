"""The items that every model is asked: read from the prepared data, checked, and drawn once for all models."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from datasets import Dataset

from evaluation.items import RETENTION, TARGET
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.fingerprint import sha256_text
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem

FILES: Final = {TARGET: PreparedData.HELD_OUT, RETENTION: PreparedData.RETENTION}
SOURCES: Final = {TARGET: "data.held_out (or data.held_out_share)", RETENTION: "data.retention"}


@dataclass(frozen=True)
class Suite:
    """The items of `target` or `retention` whose answer is wanted."""

    name: str
    items: tuple[PreparedItem, ...]


@dataclass(frozen=True)
class Draw:
    """How many items of a suite are asked (all when `max_items` is absent), and the seed of the draw."""

    max_items: int | None
    seed: int


def read_suites(prepared: Path, draw: Draw, context_tokens: int) -> tuple[Suite, ...]:
    """Read the suites of a `PreparedData` folder; `retention` only when it has items.

    Args:
        prepared: the artifact's folder.
        draw: how many items to take of each suite.
        context_tokens: the longest sequence that the model takes.

    Raises:
        UserError: for a target suite without items, row ids that are not unique, an item without an answer, or a
            prompt that fills the model's context.
    """
    suites = [_read(prepared / file, name) for name, file in FILES.items()]
    suites = [suite for suite in suites if suite.items or suite.name == TARGET]
    problems = [problem for suite in suites for problem in _problems(suite, context_tokens)]
    if problems:
        raise UserError(problems)
    return tuple(Suite(suite.name, tuple(draw_items(suite.items, draw))) for suite in suites)


def draw_items(items: Sequence[PreparedItem], draw: Draw) -> list[PreparedItem]:
    """Draw items by a hash of seed and row id, and keep their order.

    The draw depends on no other row: adding rows to the data replaces few of the drawn ones.
    """
    ranked = sorted(items, key=lambda item: sha256_text(f"{draw.seed}/{item.row_id}"))
    drawn = {item.row_id for item in ranked[: draw.max_items]}
    return [item for item in items if item.row_id in drawn]


def _read(file: Path, name: str) -> Suite:
    if not file.is_file():  # prepare writes none for a set without rows
        return Suite(name, ())
    rows = Dataset.from_file(str(file)).select_columns(list(PreparedItem.model_fields))
    # An answer that is not wanted is none that a model should give: its loss may rise, and ought to.
    wanted = (row for row in rows if row["desirable"] is not False)
    return Suite(name, tuple(PreparedItem.model_validate(row) for row in wanted))


def _problems(suite: Suite, context_tokens: int) -> Iterator[Problem]:
    where, source = f"suite `{suite.name}`", SOURCES[suite.name]
    if not suite.items:
        yield Problem("the suite has no items, so no model can be compared on it", where, f"give {source} some rows")
    for row_id, count in Counter(item.row_id for item in suite.items).items():
        if count > 1:
            what = f"{count} items have the row id {row_id!r}, so answers to them cannot be paired"
            yield Problem(what, where, f"make the row ids of {source} unique")
    for item in suite.items:
        if all(label == IGNORED_LABEL for label in item.labels[1:]):
            yield Problem(f"item {item.row_id!r} has no answer to be scored", where, "give the row an answer")
        if len(item.prompt_ids) >= context_tokens:
            what = (
                f"item {item.row_id!r} has a prompt of {len(item.prompt_ids)} tokens; the model takes {context_tokens}"
            )
            yield Problem(
                what, where, "lower data.max_length_tokens, or raise serving.max_model_len if the model allows it"
            )
