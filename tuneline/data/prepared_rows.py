"""Rendered rows as columns of the prepared data sets."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.contracts.records import Message
from tuneline.data.packing import Packs
from tuneline.data.rendering import Rendered

IDS = pa.list_(pa.int32())
ROW_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("input_ids", IDS),
        ("labels", IDS),
        ("rejected_input_ids", IDS),
        ("rejected_labels", IDS),
        ("desirable", pa.bool_()),
    ]
)
"""Columns of `PreparedRow`."""
ITEM_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("messages", pa.string()),
        ("answer", pa.string()),
        ("prompt_ids", IDS),
        ("answer_ids", IDS),
        ("tools", pa.string()),
    ]
)
"""Columns of `PreparedItem`."""

Decode = Callable[[NDArray[np.int32]], str]


def row_batch(rows: Sequence[Rendered]) -> pa.RecordBatch:
    """Write training rows as a batch of `ROW_SCHEMA`."""
    return pa.RecordBatch.from_arrays(_row_arrays(rows), schema=ROW_SCHEMA)


def item_batch(rows: Sequence[Rendered], decode: Decode) -> pa.RecordBatch:
    """Write evaluation rows as a batch of `ITEM_SCHEMA`.

    Args:
        rows: rendered by `Renderer.render_items`.
        decode: tokens to the text that a server would answer with; what a model answers is compared with that.
    """
    prompts = [row.tokens.ids[: row.tokens.answer_start] for row in rows]
    answers = [row.tokens.ids[row.tokens.answer_start : row.tokens.answer_end] for row in rows]
    arrays = [
        *_row_arrays(rows),
        pa.array([_asked(row.example.messages[:-1]) for row in rows], pa.string()),
        pa.array([decode(answer) for answer in answers], pa.string()),
        _lists(prompts),
        _lists(answers),
        pa.array([row.example.tools for row in rows], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ITEM_SCHEMA)


def _row_arrays(rows: Sequence[Rendered]) -> list[pa.Array]:
    return [
        pa.array([row.row_id for row in rows], pa.string()),
        _lists([row.tokens.ids for row in rows]),
        _lists([row.tokens.labels for row in rows]),
        _lists([row.rejected.ids if row.rejected else None for row in rows]),
        _lists([row.rejected.labels if row.rejected else None for row in rows]),
        pa.array([row.example.desirable for row in rows], pa.bool_()),
    ]


def _lists(values: Sequence[NDArray[np.int32] | None]) -> pa.Array:
    """Join arrays into a list column without making a Python object of each token."""
    present = [value for value in values if value is not None]
    if not present:
        return pa.nulls(len(values), IDS)
    assert len(present) == len(values), "a column is whole or absent"
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in present], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(present), pa.int32()), type=IDS)


def _asked(messages: Sequence[Message]) -> str:
    plain = [message.model_dump(exclude_defaults=True) for message in messages]
    return json.dumps(plain, ensure_ascii=False)


def write_packs(path: Path, packs: Packs, lengths: NDArray[np.int32]) -> None:
    """Write one row per pack: the numbers of its training rows, and their tokens as TRL's `seq_lengths`."""
    offsets = pa.array(packs.offsets.astype(np.int32))
    rows = pa.ListArray.from_arrays(offsets, pa.array(packs.rows.astype(np.int32)))
    seq_lengths = pa.ListArray.from_arrays(offsets, pa.array(lengths[packs.rows]))
    table = pa.table({"rows": rows, "seq_lengths": seq_lengths})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
