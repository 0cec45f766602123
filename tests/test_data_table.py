"""A table gives back the rows that are asked for, whatever batches they were written in; signatures stay on disk."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneline.data.cleaning.near_duplicates import PERMUTATIONS
from tuneline.data.converting import EXAMPLES_SCHEMA, Columns, Converted
from tuneline.data.table import RowTable, TableWriter


def converted(first: int, size: int) -> Converted:
    numbers = np.arange(first, first + size)
    texts = [f"{kind} {number}" for kind in ("row", "example", "text") for number in numbers]
    arrays = [pa.array(texts[k * size : (k + 1) * size], field.type) for k, field in enumerate(EXAMPLES_SCHEMA)]
    keys = numbers.astype(np.uint64)
    return Converted(
        examples=pa.RecordBatch.from_arrays(arrays, schema=EXAMPLES_SCHEMA),
        columns=Columns(keys, keys, keys, None, numbers.astype(np.int32)),
        signatures=np.repeat(numbers.astype(np.uint32)[:, None], PERMUTATIONS, axis=1),
        kinds=Counter({"conversation": size}),
        formats=Counter(),
        rows_read=size,
        unusable=[],
        filtered=[],
        found=[],
    )


def table(folder: Path, sizes: Sequence[int]) -> RowTable:
    writer, first = TableWriter(folder / "rows.table"), 0
    for source, size in enumerate(sizes):
        writer.append(converted(first, size), source)
        first += size
    return writer.finish()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any))
def test_rows_are_found_by_number_in_any_order_and_as_often_as_asked(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, sizes: list[int]
) -> None:
    rows = table(tmp_path_factory.mktemp("table"), sizes)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=60))
    assert rows.names(np.array(wanted, dtype=np.int64)) == [f"row {number}" for number in wanted]
    rising = sorted(set(wanted))
    parts = list(rows.parts(np.array(rising, dtype=np.int64)))
    assert [text for part in parts for text in part.examples()] == [f"example {number}" for number in rising]
    assert [text for part in parts for text in part.texts()] == [f"text {number}" for number in rising]


def test_parts_are_small_and_read_only_the_batches_that_hold_their_rows(tmp_path: Path) -> None:
    rows = table(tmp_path, [1_500] * 4)
    parts = list(rows.parts(np.arange(500, 5_500)))
    assert [len(part.rows) for part in parts] == [2_000, 2_000, 1_000]
    assert [(part.first_batch, part.starts.tolist()) for part in parts] == [
        (0, [0, 1_500, 3_000]),
        (1, [1_500, 3_000, 4_500]),
        (3, [4_500, 6_000]),
    ]
    assert rows.sources.tolist() == [number // 1_500 for number in range(6_000)]
    assert rows.kinds == {"conversation": 6_000}


def test_signatures_of_all_rows_or_of_some_stay_on_disk(tmp_path: Path) -> None:
    rows = table(tmp_path, [30, 30])
    chosen = np.array([3, 31, 59])
    assert rows.signatures(chosen)[:, 0].tolist() == [3, 31, 59]
    assert rows.signatures(np.arange(60))[:, 5].tolist() == list(range(60))
    assert all(isinstance(rows.signatures(which), np.memmap) for which in (chosen, np.arange(60)))


def test_a_column_is_whole_however_often_it_grew_and_absent_where_it_has_no_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneline.data.table.FIRST_ROWS", 3)
    rows = table(tmp_path, [2, 5, 0, 40])
    assert rows.columns.prompt_keys.tolist() == list(range(47))
    assert rows.columns.characters.dtype == np.int32
    assert rows.columns.times is None
