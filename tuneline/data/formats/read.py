"""A row of any format to an `Example`."""

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.records import Example
from tuneline.data.formats.cells import kind_of, shown, whole_text
from tuneline.data.formats.conversation import (
    Messages,
    Values,
    check_conversation,
    read_alpaca,
    read_prompt_and_answer,
    with_default_system,
    with_system,
)
from tuneline.data.formats.detect import Layout, find_layout
from tuneline.data.formats.explain import why_no_format
from tuneline.data.formats.preference import read_pair
from tuneline.data.formats.tools import read_tools
from tuneline.data.formats.turns import dialect_of, read_turns, turn_list
from tuneline.data.rows import SourceRow, UnusableRow


def read_example(row: SourceRow, spec: DataSpec) -> Example:
    """Read a row in the format that `spec.format` sets, or that its columns show.

    A null cell counts as an absent column (Arrow fills them where schemas were mixed), except one that says what a row
    is for: without its label or its rejected answer a row would be taken for an ordinary conversation.

    Raises:
        UnusableRow: it is no example of that format; the message names the column, the message's index, and what to do.
    """
    values = row.values
    columns = tuple([name for name, value in values.items() if value is not None or _says_kind(name, spec)])
    layout = find_layout(columns, spec.format, tuple(spec.columns.items()), spec.prompt_template)
    try:
        if layout is None:
            raise UnusableRow(why_no_format(values, spec))
        if layout.format == "text":
            return _text(row, layout)
        if layout.format == "preference":
            return _preference(row, layout, spec)
        return _conversation(row, layout, spec)
    except UnusableRow as error:
        # Names of columns and quoted values may hold half of a surrogate pair, and a reason must go through any pipe.
        why = str(error).encode("utf-8", "backslashreplace").decode()
        raise UnusableRow(why) from None


def _says_kind(name: str, spec: DataSpec) -> bool:
    return name in {spec.columns.get(role, role) for role in ("label", "chosen", "rejected")}


def _text(row: SourceRow, layout: Layout) -> Example:
    assert layout.text is not None
    value = row.values.get(layout.text)
    if not isinstance(value, str):
        raise UnusableRow(f"`{layout.text}` holds {kind_of(value)} where text is needed")
    return Example(row_id=row.row_id, kind="text", format="text", text=whole_text(value, layout.text))


def _preference(row: SourceRow, layout: Layout, spec: DataSpec) -> Example:
    pair = read_pair(row.values, layout)
    messages = with_system(pair.prompt + pair.chosen, row.values, layout)
    check_conversation(messages, len(messages) - len(pair.chosen))
    return Example(
        row_id=row.row_id,
        kind="preference",
        format="preference",
        messages=with_default_system(messages, spec.system_prompt),
        rejected=pair.rejected,
        tools=_tools(row.values, layout),
    )


def _conversation(row: SourceRow, layout: Layout, spec: DataSpec) -> Example:
    values = row.values
    format_, messages = _messages(values, layout, spec)
    messages = with_system(messages, values, layout)
    check_conversation(messages, len(messages) - 1)
    messages = with_default_system(messages, spec.system_prompt)
    if layout.label is None:
        return Example(
            row_id=row.row_id,
            kind="conversation",
            format=format_,
            messages=messages,
            tools=_tools(values, layout),
        )
    return Example(
        row_id=row.row_id,
        kind="unpaired_preference",
        format=format_,
        messages=messages,
        desirable=_label(values.get(layout.label), layout.label),
        tools=_tools(values, layout),
    )


def _messages(values: Values, layout: Layout, spec: DataSpec) -> tuple[str, Messages]:
    """Return the format, which a column of turns may show only by its values, and the turns."""
    if layout.format == "alpaca":
        return layout.format, read_alpaca(values, layout)
    if layout.messages is None:
        return layout.format, read_prompt_and_answer(values, layout)
    turns = turn_list(values.get(layout.messages), layout.messages)
    if layout.format == "unpaired_preference":
        return layout.format, read_turns(turns, layout.messages)
    dialect = dialect_of(turns) if spec.format == "auto" else "sharegpt" if spec.format == "sharegpt" else "messages"
    return dialect, read_turns(turns, layout.messages, dialect)


def _tools(values: Values, layout: Layout) -> str | None:
    return None if layout.tools is None else read_tools(values.get(layout.tools), layout.tools)


def _label(value: object, column: str) -> bool:
    if isinstance(value, str):
        label = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    else:
        label = bool(value) if isinstance(value, int | float) and value in (0, 1) else None
    if label is None:
        quoted = f"`{shown(value)}`" if isinstance(value, str) else kind_of(value)
        raise UnusableRow(
            f"the label `{column}` holds {quoted} where true or false is needed; "
            "set data.format if the rows are no unpaired preferences"
        )
    return label
