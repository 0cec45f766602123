"""Why a row's columns are those of no example."""

from collections.abc import Mapping
from typing import Final

from tuneline.contracts.data_spec import ColumnRole, DataSpec
from tuneline.data.formats.cells import SHOWN_COLUMNS, listed, nearest, shown
from tuneline.data.formats.detect import KNOWN_PAIRS, MISSPELT_SIMILARITY, TURNS

OWN_NAMES: Final[dict[str, dict[ColumnRole, str]]] = {
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "alpaca": {"prompt": "instruction", "completion": "output"},
    "sharegpt": {"messages": "conversations"},
    "messages": {"messages": "messages"},
    "text": {"text": "text"},
    "preference": {"chosen": "chosen", "rejected": "rejected"},
    "unpaired_preference": {"label": "label"},
}
"""The columns that a format cannot do without, by role."""
_KNOWN: Final = {name for pair in KNOWN_PAIRS for name in pair} | {*TURNS, "chosen", "rejected", "label", "text"}


def why_no_format(values: Mapping[str, object], spec: DataSpec) -> str:
    """Say which columns are missing, null or nearly called as they should be, and which there are."""
    reasons = [_absent(column, values, role) for role, column in spec.columns.items() if values.get(column) is None]
    reasons += _automatic(values, spec) if spec.format == "auto" else _set(values, spec)
    return f"{'; '.join(reasons)}; the columns are {listed(values)}"


def _set(values: Mapping[str, object], spec: DataSpec) -> list[str]:
    own = [name for role, name in OWN_NAMES[spec.format].items() if role not in spec.columns]
    reasons = [_absent(name, values) for name in own if values.get(name) is None]
    if spec.format == "unpaired_preference" and not reasons:
        reasons = ["unpaired_preference needs messages, or prompt and completion, beside the label"]
    return [f"data.format {spec.format} cannot read it: {reason}" for reason in reasons]


def _automatic(values: Mapping[str, object], spec: DataSpec) -> list[str]:
    null = [name for name, value in values.items() if value is None]
    unknown = [name for name in values if name not in _KNOWN and name not in spec.columns.values()]
    near = {name: nearest(name, _KNOWN, MISSPELT_SIMILARITY) for name in unknown[:SHOWN_COLUMNS]}
    reasons = ["no format has these columns" + (" as data.columns names them" if spec.columns else "")]
    reasons += [f"null are {listed(null)}"] if null else []
    return reasons + [f"`{shown(name)}` is nearly `{known}`" for name, known in near.items() if known]


def _absent(column: str, values: Mapping[str, object], role: ColumnRole | None = None) -> str:
    named = f" (data.columns.{role})" if role else ""
    if column in values:
        return f"`{column}`{named} is null"
    near = nearest(column, values)
    return f"no column `{column}`{named}" + (f", the nearest is `{shown(near)}`" if near else "")
