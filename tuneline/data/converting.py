"""Source rows to examples with their keys, a chunk at a time: what a worker does before anything is decided."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tuneline.contracts.data_spec import CleaningSpec, DataSpec
from tuneline.contracts.fingerprint import canonical_json
from tuneline.contracts.records import Example
from tuneline.data.cleaning.filters import RowFilter
from tuneline.data.cleaning.near_duplicates import signatures
from tuneline.data.cleaning.sensitive import SensitiveText
from tuneline.data.cleaning.texts import key_of, prompt_key_text, text_of, whole_key_text
from tuneline.data.formats.read import read_example
from tuneline.data.ledger import Loss
from tuneline.data.rows import SourceRow, UnreadableRow, UnusableRow
from tuneline.data.sources.read import Chunk, rows_of

UNUSABLE = "cannot be used"
EXAMPLES_SCHEMA = pa.schema([("row_id", pa.string()), ("example", pa.large_string()), ("text", pa.large_string())])
"""`example` is JSON, `text` all the words in it."""


@dataclass(frozen=True)
class Conversion:
    """How the rows of a data set are converted."""

    spec: DataSpec
    training: bool
    """Whether rows may be filtered: an evaluation set keeps every row that can be used."""
    signatures: bool
    """Whether near-duplicates are looked for."""


@dataclass(frozen=True)
class Columns:
    """What is decided by: a value per row."""

    prompt_keys: NDArray[np.uint64]
    whole_keys: NDArray[np.uint64]
    groups: NDArray[np.uint64] | None
    """None where the config names no column: then rows of one prompt are a group."""
    times: NDArray[np.float64] | None
    """None where the config names no column."""
    characters: NDArray[np.int32]


@dataclass(frozen=True)
class Converted:
    """A chunk's examples, as JSON, with their columns; and the rows that are none."""

    examples: pa.RecordBatch
    columns: Columns
    signatures: NDArray[np.uint32] | None
    kinds: Counter[str]
    formats: Counter[str]
    rows_read: int
    unusable: list[Loss]
    filtered: list[Loss]
    found: list[Loss]
    """Rows that hold secrets or personal data."""


def convert(conversion: Conversion, chunk: Chunk) -> Converted:
    """Read a chunk of rows as examples, clean them, and compute their keys."""
    rows = list(rows_of(chunk))
    unusable: list[Loss] = []
    examples: list[Example] = []
    places: list[tuple[int, float]] = []
    for row in rows:
        try:
            place = _place(row, conversion.spec)
            examples.append(_example(row, conversion.spec))
            places.append(place)
        except UnusableRow as error:
            unusable.append(Loss(row.row_id, UNUSABLE, str(error)))
    formats = Counter(example.format for example in examples)
    reasons = _filter(conversion.spec.cleaning).reasons(examples) if conversion.training else [None] * len(examples)
    filtered = [Loss(example.row_id, why) for example, why in zip(examples, reasons, strict=True) if why]
    kept = [index for index, why in enumerate(reasons) if not why]
    checked = _sensitive(conversion.spec.cleaning).check([examples[index] for index in kept])
    clean = [one.example for one in checked]
    texts = [text_of(example) for example in clean]
    prompts = np.array([key_of(prompt_key_text(example)) for example in clean], dtype=np.uint64)
    groups, times = ([places[index][side] for index in kept] for side in (0, 1))
    columns = Columns(
        prompt_keys=prompts,
        whole_keys=np.array([key_of(whole_key_text(example)) for example in clean], dtype=np.uint64),
        groups=np.array(groups, dtype=np.uint64) if conversion.spec.held_out_group else None,
        times=np.array(times, dtype=np.float64) if conversion.spec.held_out_time else None,
        characters=np.array([len(text) for text in texts], dtype=np.int32),
    )
    return Converted(
        examples=_batch(clean, texts),
        columns=columns,
        signatures=signatures(texts) if conversion.signatures else None,
        kinds=Counter(example.kind for example in clean),
        formats=formats,
        rows_read=len(rows),
        unusable=unusable,
        filtered=filtered,
        found=[Loss(one.example.row_id, kind) for one in checked for kind in one.found],
    )


def _example(row: SourceRow | UnreadableRow, spec: DataSpec) -> Example:
    if isinstance(row, UnreadableRow):
        raise UnusableRow(row.why)
    return read_example(row, spec)


def _place(row: SourceRow | UnreadableRow, spec: DataSpec) -> tuple[int, float]:
    """Key of the row's group, and its time; each 0 where the config names no such column."""
    if isinstance(row, UnreadableRow):
        return 0, 0.0
    group = 0 if spec.held_out_group is None else key_of(_cell(row, spec.held_out_group, "data.held_out_group"))
    time = 0.0 if spec.held_out_time is None else _time(_cell(row, spec.held_out_time, "data.held_out_time"))
    return group, time


def _cell(row: SourceRow, column: str, key: str) -> str:
    if row.values.get(column) is None:
        raise UnusableRow(f"no column `{column}` (named by {key})")
    value = row.values[column]
    return value if isinstance(value, str) else canonical_json(_plain(value))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def _time(text: str) -> float:
    """Read a number or an ISO 8601 date; one without a zone counts as UTC."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip('"'))
    except ValueError:
        raise UnusableRow(f"{text!r} is neither a number nor a date (ISO 8601)") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _batch(examples: Sequence[Example], texts: list[str]) -> pa.RecordBatch:
    columns = [[example.row_id for example in examples], [example.model_dump_json() for example in examples], texts]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EXAMPLES_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=EXAMPLES_SCHEMA)


@lru_cache(maxsize=4)
def _filter(spec: CleaningSpec) -> RowFilter:
    return RowFilter(spec)


@lru_cache(maxsize=4)
def _sensitive(spec: CleaningSpec) -> SensitiveText:
    return SensitiveText(spec)
