"""A row that is no example says why, for people; whatever a row holds, nothing else is raised."""

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.records import Example
from tuneline.data.formats.read import read_example
from tuneline.data.rows import SourceRow, UnusableRow

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
HUMAN, GPT = {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}
WRONG = {"role": "assistant", "content": "5"}
TURNS = [USER, ASSISTANT]
FORMATS = get_args(DataSpec.model_fields["format"].annotation)


def why(values: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(UnusableRow) as caught:
        read_example(SourceRow("rows.jsonl:7", values), DataSpec(train="rows.jsonl", **settings))
    return str(caught.value)


def call(arguments: object, name: object = "sum") -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("values", "config", "reasons"),
    [
        ({"title": "a", "body": "b"}, {}, ["no format has these columns", "the columns are title, body"]),
        ({}, {}, ["the columns are none"]),
        ({"prompt": "a", "completoin": "b"}, {}, ["`completoin` is nearly `completion`"]),
        ({"prompt": "a", "completion": None}, {}, ["null are completion"]),
        (
            {"question": "a", "answer": "b"},
            {"columns": {"prompt": "qustion"}},
            [
                "no column `qustion` (data.columns.prompt), the nearest is `question`",
                "the columns are question, answer",
            ],
        ),
        ({"frage": None, "answer": "b"}, {"columns": {"prompt": "frage"}}, ["`frage` (data.columns.prompt) is null"]),
        ({"messages": TURNS, "label": 1}, {"columns": {"label": "lable"}}, ["`lable` (data.columns.label)", "`label`"]),
        ({"prompt": "a"}, {"format": "prompt_completion"}, ["no column `completion`", "the columns are prompt"]),
        ({"prompt": "a", "completion": None}, {"format": "prompt_completion"}, ["`completion` is null"]),
        ({"completion": "b"}, {"format": "prompt_completion"}, ["no column `prompt`"]),
        ({"question": "a", "answer": "b"}, {"format": "prompt_completion"}, ["no column `prompt`", "question, answer"]),
        ({"instruction": "a"}, {"format": "alpaca"}, ["data.format alpaca cannot read it: no column `output`"]),
        ({"text": "a"}, {"format": "messages"}, ["no column `messages`"]),
        ({"text": "a"}, {"format": "sharegpt"}, ["no column `conversations`"]),
        ({"txt": "a"}, {"format": "text"}, ["no column `text`, the nearest is `txt`"]),
        ({"chosen": "a"}, {"format": "preference"}, ["no column `rejected`"]),
        ({"label": True}, {"format": "unpaired_preference"}, ["needs messages, or prompt and completion"]),
        ({"messages": TURNS}, {"format": "unpaired_preference"}, ["no column `label`"]),
        (
            {"prompt": "a", "completion": "b", "topic": "c"},
            {"prompt_template": "{topics}: {prompt}"},
            ["no column `topics`, which prompt_template names", "nearest is `topic`", "prompt, completion, topic"],
        ),
        (
            {"prompt": "a", "completion": "b", "topic": None},
            {"prompt_template": "{topic}: {prompt}"},
            ["`topic` is null"],
        ),
        (
            {"prompt": [USER], "completion": "b"},
            {"prompt_template": "Q: {prompt}"},
            ["prompt_template makes a message of text, but `prompt` holds a list of messages"],
        ),
    ],
)
def test_missing_columns_are_named_with_the_nearest_and_all_there_are(
    values: dict[str, Any], config: dict[str, Any], reasons: list[str]
) -> None:
    message = why(values, **config)
    assert [reason for reason in reasons if reason not in message] == [], message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": {"a": 1}, "completion": "b"}, "`prompt` holds an object where text is needed"),
        ({"prompt": "a", "completion": {"a": 1}}, "`completion` holds an object where text or a list of messages"),
        ({"prompt": ["a"], "completion": "b"}, "`prompt[0]` is text, no message"),
        ({"prompt": "a", "completion": [USER]}, "`completion[0]` is of role `user`, no answer"),
        ({"prompt": "a", "completion": []}, "`completion` holds no message"),
        ({"prompt": "a", "completion": float("nan")}, "`completion` holds NaN where text is needed"),
        ({"prompt": "a", "completion": 10**5000}, "`completion` holds a number too long"),
        ({"prompt": "a", "completion": b"b"}, "`completion` holds a value of type bytes"),
        (
            {"prompt": "a", "completion": "\ud83d!"},
            "`completion` holds half of a surrogate pair, U+D83D at character 0",
        ),
        ({"prompt": " ", "completion": "b"}, "the prompt `prompt` is empty"),
        ({"prompt": "a", "completion": "b", "system": ["c"]}, "`system` holds a list where text is needed"),
        ({"instruction": "", "input": " ", "output": "b"}, "the prompt `instruction` is empty"),
        ({"instruction": "a", "output": "b", "history": "no"}, "`history` is no JSON"),
        ({"instruction": "a", "output": "b", "history": {"q": "a"}}, "`history` holds an object where a list"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "`history[0]` is no [question, answer]"),
        ({"instruction": "a", "output": "b", "history": [["q", None]]}, "`history[0][1]` is null"),
        ({"text": 5}, "`text` holds a number where text is needed"),
        ({"text": "\udc00"}, "`text` holds half of a surrogate pair"),
    ],
)
def test_wrong_cells_are_named(values: dict[str, Any], reason: str) -> None:
    assert reason in why(values)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (5, "`messages` holds a number where a list of messages is needed"),
        ([], "`messages` holds no message"),
        ("[{", "`messages` is no JSON"),
        ("[" * 100_000, "`messages` is nested too deep"),
        ("5", "`messages` holds a number"),
        ([USER, None], "`messages[1]` is null, no message"),
        ([USER, "4"], "`messages[1]` is text, no message"),
        ([USER, {"content": "4"}], "`messages[1]` has no `role`; its keys are content"),
        (
            [USER, {"role": "asistant", "content": "4"}],
            "`messages[1].role` is the unknown role `asistant`, the nearest",
        ),
        ([USER, {"role": "gpt", "content": "4"}], "roles are system, developer, user, assistant, tool"),
        ([USER, {"role": ["assistant"], "content": "4"}], "`messages[1].role` holds a list where text is needed"),
        ([USER, {"role": "assistant"}], "`messages[1].content` is missing; the keys are role"),
        ([USER, {"role": "assistant", "content": None}], "`messages[1].content` holds null where text is needed"),
        ([USER, {"role": "assistant", "content": 4}], "`messages[1].content` holds a number where text is needed"),
        ([USER, {"role": "assistant", "content": {}}], "`messages[1].content` holds an object where text is needed"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url"}]}], "[0]` is a part of type `image_url`: only"),
        ([USER, {"role": "assistant", "content": [{"type": "input_audio"}]}], "only text is trained"),
        ([USER, {"role": "assistant", "content": ["4"]}], "`messages[1].content[0]` is text, no content part"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "`messages[1].content[0].text` holds null"),
        ([USER, {**ASSISTANT, "weight": 0.5}], "`messages[1].weight` must be 0 or 1"),
        ([USER, {**ASSISTANT, "name": 5}], "`messages[1].name` holds a number where text is needed"),
        ([USER, {**ASSISTANT, "reasoning": ["a"]}], "`messages[1].reasoning` holds a list where text is needed"),
        ([USER, {**ASSISTANT, "content": "\ud83d"}], "`messages[1].content` holds half of a surrogate pair"),
        ([{**USER, "tool_calls": call("{}")["tool_calls"]}, ASSISTANT], "`messages[0]` calls a tool, but only"),
        ([USER, call("[1]")], "`messages[1].tool_calls[0].arguments` holds a list where an object is needed"),
        ([USER, call(None)], "`messages[1].tool_calls[0].arguments` holds null where an object is needed"),
        ([USER, call("{a}")], "`messages[1].tool_calls[0].arguments` is no JSON"),
        ([USER, call('{"a": NaN}')], "`messages[1].tool_calls[0].arguments` cannot be written as JSON"),
        ([USER, call({"a": b"b"})], "`messages[1].tool_calls[0].arguments` cannot be written as JSON"),
        ([USER, call("{}", "")], "`messages[1].tool_calls[0]` is a tool call without a name"),
        ([USER, call("{}", None)], "`messages[1].tool_calls[0]` is a tool call without a name"),
        ([USER, {"role": "assistant", "tool_calls": 5}], "`messages[1].tool_calls` holds a number where a tool call"),
        ([USER, {"role": "assistant", "tool_calls": [None]}], "`messages[1].tool_calls[0]` holds null where a tool"),
        ([USER], "the last message is of role `user`: there is no assistant answer at the end"),
        ([ASSISTANT], "there is no prompt before the answer"),
        ([ASSISTANT, ASSISTANT], "there is no prompt before the answer"),
        ([{"role": "user", "content": " "}, ASSISTANT], "the prompt is empty"),
        (
            [{"role": "tool", "content": "4"}, USER, ASSISTANT],
            "`messages[0]` is the answer of a tool, but no assistant",
        ),
        (
            [USER, {"role": "tool", "content": "4"}, ASSISTANT],
            "`messages[1]` is the answer of a tool, but no assistant",
        ),
    ],
)
def test_wrong_messages_are_named_by_column_and_index(turns: object, reason: str) -> None:
    assert reason in why({"messages": turns})


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([HUMAN, {"from": "robot", "value": "4"}], "`conversations[1].from` is the unknown role `robot`"),
        ([HUMAN, {"from": "gpt", "value": 4}], "`conversations[1].value` holds a number where text is needed"),
        ([HUMAN, {"from": "gpt"}], "`conversations[1].value` is missing"),
        ([HUMAN, {"from": "function_call", "value": "sum(2, 2)"}], "`conversations[1].value` is no JSON"),
        ([HUMAN, {"from": "function_call", "value": "[]"}], "`conversations[1].value` holds no call"),
        ([HUMAN, {"from": "function_call", "value": '{"name": "a"}'}], "`conversations[1].value.arguments` holds null"),
        ([HUMAN, {"from": "function_call", "value": "5"}], "`conversations[1].value` holds a number where a tool call"),
        ([HUMAN, {"from": "observation", "value": "4"}, GPT], "`conversations[1]` is the answer of a tool"),
        ([HUMAN], "the last message is of role `user`"),
    ],
)
def test_wrong_sharegpt_turns_are_named_by_column_and_index(turns: object, reason: str) -> None:
    assert reason in why({"conversations": turns})


def test_the_dialect_that_is_not_set_is_pointed_to() -> None:
    assert "`messages[0]` has no `role`; its keys are from, value; data.format sharegpt reads `from`" in why(
        {"messages": [HUMAN, GPT]}, format="messages"
    )
    assert "data.format messages reads `role`" in why({"conversations": TURNS}, format="sharegpt")


def test_two_different_system_messages_are_one_too_many() -> None:
    turns = [{"role": "system", "content": "Count."}, *TURNS]
    assert "two system messages: in `system` and among the turns" in why({"messages": turns, "system": "Do not."})


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("sum", "`tools` is no JSON"),
        ("{}", "`tools` holds an object where a list of tools is needed"),
        (["sum"], "`tools[0]` holds text where a tool is needed"),
        ([{"description": "Adds."}], "`tools[0]` is a tool without a name"),
        ([{"type": "function", "function": "sum"}], "`tools[0]` is a tool without a name"),
        ([{"name": "sum", "parameters": float("nan")}], "`tools` cannot be written as JSON"),
    ],
)
def test_wrong_tools_are_named(tools: object, reason: str) -> None:
    assert reason in why({"messages": TURNS, "tools": tools})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "a", "chosen": "4", "rejected": "4"}, "chosen and rejected are the same"),
        ({"chosen": TURNS, "rejected": TURNS}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": "4", "rejected": None}, "`rejected` is null"),
        ({"chosen": "4", "rejected": "5"}, "no common beginning, so there is no prompt"),
        ({"prompt": "", "chosen": "4", "rejected": "5"}, "the prompt `prompt` is empty"),
        ({"prompt": "a", "chosen": ["4"], "rejected": "5"}, "`chosen[0]` is text, no message"),
        ({"prompt": "a", "chosen": {"x": 1}, "rejected": "5"}, "`chosen[0]` has no `role`"),
        ({"prompt": "b", "chosen": TURNS, "rejected": "5"}, "begins with another turn than the assistant's, and not"),
        (
            {"chosen": TURNS, "rejected": [*TURNS, USER, {**ASSISTANT, "content": "5"}]},
            "rejected goes on with a turn of role `user`",
        ),
        (
            {"chosen": [*TURNS, USER, ASSISTANT], "rejected": [*TURNS, {**USER, "content": "b"}, ASSISTANT]},
            "chosen goes on with a turn of role `user` where it parts from the other",
        ),
        (
            {"chosen": [{**USER, "content": ""}, ASSISTANT], "rejected": [{**USER, "content": ""}, WRONG]},
            "the prompt is empty",
        ),
        ({"chosen": [USER], "rejected": TURNS}, "chosen has no answer after the prompt"),
        ({"messages": TURNS, "label": None}, "the label `label` holds null where true or false is needed"),
        ({"messages": TURNS, "label": 2}, "the label `label` holds a number where true or false is needed"),
        ({"prompt": "a", "completion": "b", "label": "spam"}, "the label `label` holds `spam`"),
        ({"messages": [USER], "label": True}, "there is no assistant answer at the end"),
    ],
)
def test_wrong_preferences_say_what_is_wrong_with_them(values: dict[str, Any], reason: str) -> None:
    assert reason in why(values)


def test_a_reason_is_short_and_can_be_written_anywhere() -> None:
    long = why({"messages": [USER, {"role": "x" * 10_000_000, "content": "4"}]})
    assert len(long) < 300
    assert "and 99,960 more" in why({f"c{number}": "a" for number in range(100_000)})
    assert "\\udc00" in why({"a\udc00": "b"}).encode().decode()


KEYS = ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text", "weight"]
WORDS = ["user", "assistant", "human", "gpt", "function_call", "observation", "tool", "system", "function", "text"]
COLUMNS = ["prompt", "completion", "instruction", "input", "output", "history", "system", "tools", "messages"]
COLUMNS += ["conversations", "text", "chosen", "rejected", "label", "question", "answer"]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from([*WORDS, "[", "{}", "[]", "null", '[{"role": "user", "content": 1}]', "\ud800", '"\\ud800"']),
)
TURN = st.dictionaries(st.sampled_from(KEYS), LEAVES, max_size=4)
CELLS = st.recursive(
    st.one_of(LEAVES, st.lists(TURN, max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS) | st.text(st.characters(), max_size=3), CELLS, max_size=5)
OPTIONS = st.sampled_from(
    [
        {},
        {"system_prompt": "Be brief."},
        {"prompt_template": 'Say {prompt} as {"a": {b}}}'},
        {"columns": {"prompt": "text", "completion": "label", "system": "history"}},
        {"columns": {"messages": "text", "label": "input"}},
    ]
)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(values=ROWS, format_=st.sampled_from(FORMATS), options=OPTIONS)
def test_any_row_is_an_example_that_can_be_written_or_an_unusable_row(
    values: dict[str, Any], format_: Any, options: dict[str, Any]
) -> None:
    spec = DataSpec(train="rows.jsonl", format=format_, **options)
    try:
        example = read_example(SourceRow("rows.jsonl:7", values), spec)
    except UnusableRow as error:
        assert str(error).encode()
        return
    assert Example.model_validate_json(example.model_dump_json()) == example
    if example.kind != "text":
        assert example.messages[-1].role == "assistant"
        assert any(message.role != "assistant" for message in example.messages[:-1])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cell=CELLS, turns=st.lists(st.one_of(TURN, st.sampled_from([USER, ASSISTANT, HUMAN, GPT])), max_size=4))
@pytest.mark.parametrize("column", ["messages", "conversations", "chosen", "completion", "history", "tools"])
def test_a_sound_row_with_one_strange_cell_never_crashes(cell: Any, turns: list[Any], column: str) -> None:
    sound: dict[str, dict[str, Any]] = {
        "chosen": {"prompt": "2+2?", "rejected": "5"},
        "completion": {"prompt": "2+2?"},
        "history": {"instruction": "2+2?", "output": "4"},
        "tools": {"messages": TURNS},
    }
    for value in (cell, turns):
        values = {**sound.get(column, {}), column: value}
        try:
            example = read_example(SourceRow("rows.jsonl:7", values), DataSpec(train="rows.jsonl"))
        except UnusableRow:
            continue
        assert example.model_dump_json()
