"""Which items are asked, and what is refused before any model is loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_model import make_prepared, make_tiny_base, write_rows

from evaluation.suites import Draw, draw_items, read_suites
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem

EVERYTHING = Draw(max_items=None, seed=17)
Rows = list[dict[str, Any]]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return make_prepared(tmp_path / "prepared", make_tiny_base(tmp_path / "base"), train_rows=4, held_out_rows=20)


def change(file: Path, edit: Callable[[Rows], Rows]) -> None:
    """Write a suite's rows again as `edit` returns them."""
    rows = edit(pa.ipc.open_stream(file.read_bytes()).read_all().to_pylist())
    write_rows(file, PreparedItem, rows)


def row_ids(items: Sequence[PreparedItem]) -> list[str]:
    return [item.row_id for item in items]


def test_all_items_are_asked_in_their_order_unless_fewer_are_wanted(prepared: Path) -> None:
    target, retention = read_suites(prepared, EVERYTHING, 512)
    assert (target.name, retention.name) == ("target", "retention")
    assert row_ids(target.items) == [f"rows.jsonl:{number}" for number in range(5, 25)]
    assert row_ids(retention.items) == [f"rows.jsonl:{number}" for number in range(5, 15)]


def test_a_run_without_retention_rows_has_one_suite(prepared: Path) -> None:
    (prepared / PreparedData.RETENTION).unlink()
    assert [suite.name for suite in read_suites(prepared, EVERYTHING, 512)] == ["target"]


def test_a_target_suite_without_items_is_refused(prepared: Path) -> None:
    (prepared / PreparedData.HELD_OUT).unlink()  # as prepare leaves it when no row is held out
    with pytest.raises(UserError, match="suite `target`: the suite has no items"):
        read_suites(prepared, EVERYTHING, 512)


def test_a_draw_is_the_same_each_time_and_does_not_depend_on_the_order_of_rows(prepared: Path) -> None:
    target, retention = read_suites(prepared, Draw(7, 17), 512)
    assert (len(target.items), len(retention.items)) == (7, 7)
    everything = read_suites(prepared, EVERYTHING, 512)[0].items
    assert row_ids(target.items) != row_ids(everything[:7])
    assert set(row_ids(draw_items(everything[::-1], Draw(7, 17)))) == set(row_ids(target.items))
    assert set(row_ids(draw_items(everything, Draw(7, 18)))) != set(row_ids(target.items))


def test_a_larger_draw_keeps_the_items_of_a_smaller_one(prepared: Path) -> None:
    items = read_suites(prepared, EVERYTHING, 512)[0].items
    assert set(row_ids(draw_items(items, Draw(5, 17)))) < set(row_ids(draw_items(items, Draw(9, 17))))


def test_every_fault_of_every_suite_is_named_at_once(prepared: Path) -> None:
    def duplicate(rows: Rows) -> Rows:
        return [*rows, rows[3]]

    def unlearned(rows: Rows) -> Rows:
        return [{**rows[0], "labels": [IGNORED_LABEL] * len(rows[0]["labels"])}, *rows[1:]]

    change(prepared / PreparedData.HELD_OUT, lambda rows: unlearned(duplicate(rows)))
    change(prepared / PreparedData.RETENTION, duplicate)
    with pytest.raises(UserError) as caught:
        read_suites(prepared, EVERYTHING, 512)
    assert [str(problem).splitlines()[0] for problem in caught.value.problems] == [
        "suite `target`: 2 items have the row id 'rows.jsonl:8', so answers to them cannot be paired",
        "suite `target`: item 'rows.jsonl:5' has no answer to be scored",
        "suite `retention`: 2 items have the row id 'rows.jsonl:8', so answers to them cannot be paired",
    ]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(prepared: Path) -> None:
    longest = max(len(item.prompt_ids) for item in read_suites(prepared, EVERYTHING, 512)[0].items)
    read_suites(prepared, EVERYTHING, longest + 1)
    with pytest.raises(UserError, match=f"has a prompt of {longest} tokens; the model takes {longest}"):
        read_suites(prepared, EVERYTHING, longest)
