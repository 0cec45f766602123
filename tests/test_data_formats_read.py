"""Rows of every format become the one `Example`, nothing added and nothing lost."""

import json
from typing import Any

import pytest

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.records import Example, Message, ToolCall
from tuneline.data.formats.read import read_example
from tuneline.data.rows import SourceRow


def read(values: dict[str, Any], **settings: Any) -> Example:
    return read_example(SourceRow("rows.jsonl:7", values), DataSpec(train="rows.jsonl", **settings))


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def system(content: str) -> Message:
    return Message(role="system", content=content)


CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


# prompt and completion


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("query", "response"),
        ("input", "output"),
        ("instruction", "response"),
    ],
)
def test_a_pair_of_known_columns_is_a_question_and_its_answer(prompt: str, completion: str) -> None:
    assert read({"id": 3, prompt: "2+2?", completion: " 4\n"}) == Example(
        row_id="rows.jsonl:7",
        kind="conversation",
        format="prompt_completion",
        messages=(user("2+2?"), assistant(" 4\n")),
    )


def test_the_row_says_its_system_message_and_the_config_says_it_for_the_others() -> None:
    row = {"prompt": "2+2?", "completion": "4"}
    assert read({**row, "system": "Count."}, system_prompt="Be brief.").messages[0] == system("Count.")
    for values in (row, {**row, "system": " "}, {**row, "system": None}):
        assert read(values, system_prompt="Be brief.").messages == (system("Be brief."), user("2+2?"), assistant("4"))
    developer = {"role": "developer", "content": "Count."}
    assert read({"messages": [developer, *CHAT]}, system_prompt="Be brief.").messages[0].role == "developer"


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (0.5, "0.5"), (True, "true"), (False, "false"), ("7", "7")])
def test_numbers_and_truth_values_of_cells_are_their_text(value: object, text: str) -> None:
    assert read({"prompt": value, "completion": value}).messages == (user(text), assistant(text))


def test_the_template_is_filled_with_columns_and_keeps_what_is_no_column() -> None:
    row = {"question": "2+2?", "answer": "4", "topic": "sums", 'a "b"': "odd"}

    def prompt(template: str) -> str:
        return read(row, prompt_template=template).messages[0].content

    assert prompt("{topic}: {prompt} ({question})") == "sums: 2+2? (2+2?)"
    assert prompt('Answer {prompt} as {{"answer": {topic}}}') == 'Answer 2+2? as {"answer": sums}'
    assert prompt('{"a": {"b": [1, 2]}} {prompt} } {') == '{"a": {"b": [1, 2]}} 2+2? } {'
    assert prompt('{} {prompt} {a "b"}') == "{} 2+2? odd"
    assert prompt("{topic} only") == "sums only"
    assert prompt("{prompt}{prompt}") == "2+2?2+2?"


def test_a_cell_that_looks_like_a_placeholder_is_not_filled_again() -> None:
    row = {"prompt": "{topic}", "completion": "4", "topic": "sums"}
    assert read(row, prompt_template="Q: {prompt}").messages[0].content == "Q: {topic}"


def test_a_template_that_needs_no_prompt_column_makes_the_prompt() -> None:
    row = {"title": "Sums", "body": "2+2?", "label_name": "maths"}
    example = read(row, prompt_template="{title}\n{body}", columns={"completion": "label_name"})
    assert example.messages == (user("Sums\n2+2?"), assistant("maths"))
    assert example.format == "prompt_completion"


def test_prompt_and_completion_may_be_lists_of_messages() -> None:
    row = {"prompt": [{"role": "system", "content": "Count."}, CHAT[0]], "completion": [CHAT[1]]}
    expected = (system("Count."), user("2+2?"), assistant("4"))
    assert read(row).messages == expected
    assert read({**row, "completion": "4"}).messages == expected


def test_an_empty_prompt_is_a_prompt_where_the_row_has_other_content() -> None:
    assert read({"prompt": "", "completion": "4", "system": "Count."}).messages[1] == user("")
    assert read({"instruction": "", "output": "4", "system": "Count."}).messages[1] == user("")
    assert read({"instruction": "", "output": "4", "history": [["1+1?", "2"]]}).messages[2] == user("")
    assert read({"messages": [system("Count.").as_chat(), user(" ").as_chat(), CHAT[1]]}).messages[1] == user(" ")


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_left_to_cleaning(answer: str) -> None:
    assert read({"prompt": "2+2?", "completion": answer}).messages[-1] == assistant(answer)
    assert read({"messages": [CHAT[0], {"role": "assistant", "content": answer}]}).messages[-1] == assistant(answer)
    assert read({"text": answer}).text == answer


# alpaca


def test_alpaca_joins_instruction_and_input_after_system_and_history() -> None:
    row = {
        "instruction": "Add.",
        "input": "2 and 2",
        "output": "4",
        "system": "Count.",
        "history": [["1+1?", "2"], ["3+3?", 6]],
    }
    example = read(row)
    assert (example.kind, example.format) == ("conversation", "alpaca")
    assert example.messages == (
        system("Count."),
        user("1+1?"),
        assistant("2"),
        user("3+3?"),
        assistant("6"),
        user("Add.\n\n2 and 2"),
        assistant("4"),
    )


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": " "}, {"input": None}, {"history": None}])
def test_alpaca_without_input_is_the_instruction_alone(extra: dict[str, Any]) -> None:
    example = read({"instruction": "Add 2 and 2.", "output": "4", **extra})
    assert example.messages == (user("Add 2 and 2."), assistant("4"))


def test_alpaca_history_may_be_json_text_and_its_columns_mapped() -> None:
    row = {"aufgabe": "Add.", "loesung": "4", "history": '[["1+1?", "2"]]'}
    example = read(row, format="alpaca", columns={"prompt": "aufgabe", "completion": "loesung"})
    assert [message.content for message in example.messages] == ["1+1?", "2", "Add.", "4"]
    example = read({"input": "Add.", "output": "4"}, format="alpaca", columns={"prompt": "input"})
    assert example.messages == (user("Add."), assistant("4"))


# sharegpt


@pytest.mark.parametrize("human", ["human", "user"])
@pytest.mark.parametrize("gpt", ["gpt", "assistant", "model", "chatgpt", "bing"])
@pytest.mark.parametrize("column", ["conversations", "conversation", "messages"])
def test_sharegpt_knows_the_speakers_by_all_their_names(human: str, gpt: str, column: str) -> None:
    turns = [{"from": "system", "value": "Count."}, {"from": human, "value": "2+2?"}, {"from": gpt, "value": "4"}]
    example = read({column: turns})
    assert (example.kind, example.format) == ("conversation", "sharegpt")
    assert example.messages == (system("Count."), user("2+2?"), assistant("4"))


def test_consecutive_function_calls_are_one_turn_and_observations_are_tool_turns() -> None:
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "city", "arguments": {"of": "me"}}'},
        {"from": "function_call", "value": '[{"name": "day", "arguments": "{}"}, {"name": "hour", "arguments": {}}]'},
        {"from": "observation", "value": "Bonn"},
        {"from": "tool", "value": "Monday"},
        {"from": "function_call", "value": {"name": "sky", "arguments": {"city": "K\u00f6ln", "days": [1, 2]}}},
        {"from": "observation", "value": "blue"},
        {"from": "gpt", "value": "Blue."},
    ]
    example = read({"conversations": turns, "system": "Be brief."})
    assert example.messages == (
        system("Be brief."),
        user("Weather?"),
        Message(
            role="assistant",
            tool_calls=(
                ToolCall(name="city", arguments='{"of":"me"}'),
                ToolCall(name="day", arguments="{}"),
                ToolCall(name="hour", arguments="{}"),
            ),
        ),
        Message(role="tool", content="Bonn"),
        Message(role="tool", content="Monday"),
        Message(role="assistant", tool_calls=(ToolCall(name="sky", arguments='{"city":"K\u00f6ln","days":[1,2]}'),)),
        Message(role="tool", content="blue"),
        assistant("Blue."),
    )


def test_function_calls_of_different_weight_or_thoughts_stay_apart() -> None:
    call = {"from": "function_call", "value": '{"name": "a", "arguments": {}}'}
    turns = [{"from": "human", "value": "?"}, {**call, "weight": 0}, {**call, "weight": 1}, {**call, "weight": 1}]
    messages = read({"conversations": turns}).messages
    thought = {**call, "reasoning": "Again."}
    assert len(read({"conversations": [turns[0], call, thought]}).messages) == 3
    assert [(len(message.tool_calls), message.weight) for message in messages] == [(0, None), (1, 0), (2, 1)]


# messages


def test_openai_messages_keep_calls_reasoning_weights_and_names() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 2,  "b": 2}'}}
    turns = [
        {"role": "developer", "content": "Count."},
        {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
        {"role": "tool", "content": "4", "name": "sum", "tool_call_id": "c1"},
        {"role": "assistant", "content": "4", "reasoning_content": "Easy.", "weight": 1},
    ]
    example = read({"messages": turns})
    assert (example.kind, example.format) == ("conversation", "messages")
    assert example.messages == (
        Message(role="developer", content="Count."),
        user("2+2?"),
        Message(role="assistant", tool_calls=(ToolCall(name="sum", arguments='{"a":2,"b":2}', id="c1"),), weight=0),
        Message(role="tool", content="4", name="sum", tool_call_id="c1"),
        Message(role="assistant", content="4", reasoning="Easy.", weight=1),
    )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(key: str) -> None:
    assert read({"messages": [CHAT[0], {**CHAT[1], key: "Easy."}]}).messages[1].reasoning == "Easy."
    assert read({"messages": [CHAT[0], {**CHAT[1], key: ""}]}).messages[1].reasoning is None


def test_assistant_turns_of_openai_messages_stay_as_they_are() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "sum", "arguments": {}}]}
    assert len(read({"messages": [CHAT[0], call, call, CHAT[1]]}).messages) == 4


def test_older_function_turns_are_tool_turns() -> None:
    turns = [
        CHAT[0],
        {"role": "assistant", "content": None, "function_call": {"name": "sum", "arguments": "{}"}},
        {"role": "function", "name": "sum", "content": "4"},
        CHAT[1],
    ]
    messages = read({"messages": turns}).messages
    assert messages[1].tool_calls == (ToolCall(name="sum", arguments="{}"),)
    assert messages[2] == Message(role="tool", content="4", name="sum")


def test_keys_that_arrow_fills_with_null_are_absent() -> None:
    nothing = {"tool_calls": None, "name": None, "weight": None, "from": None, "value": None}
    assert read({"messages": [{**turn, **nothing} for turn in CHAT]}) == read({"messages": CHAT})
    assert read({"messages": CHAT, "prompt": None, "completion": None}) == read({"messages": CHAT})
    assert read({"messages": None, "prompt": "2+2?", "completion": "4"}).format == "prompt_completion"


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_a_list_of_turns_tells_its_dialect_by_its_keys_and_may_be_json_text(column: str) -> None:
    for value in (CHAT, json.dumps(CHAT)):
        example = read({column: value})
        assert (example.format, example.messages) == ("messages", (user("2+2?"), assistant("4")))


def test_a_greeting_may_open_a_conversation() -> None:
    messages = read({"messages": [{"role": "assistant", "content": "Hello!"}, *CHAT]}).messages
    assert [message.role for message in messages] == ["assistant", "user", "assistant"]


# tools

BARE = {"parameters": {"type": "object"}, "name": "sum", "description": "Adds."}
WRAPPED = '[{"type":"function","function":{"name":"sum","description":"Adds.","parameters":{"type":"object"}}}]'


@pytest.mark.parametrize(
    "tools",
    [
        [BARE],
        json.dumps([BARE]),
        [{**BARE, "type": "function"}],
        [{"type": "function", "function": BARE}],
        json.dumps([{"function": BARE, "type": "function"}], indent=2),
    ],
)
def test_tools_are_one_json_text_however_they_are_written(tools: object) -> None:
    assert read({"messages": CHAT, "tools": tools}).tools == WRAPPED
    assert read({"conversations": CHAT, "werkzeug": tools}, columns={"tools": "werkzeug"}).tools == WRAPPED


@pytest.mark.parametrize("tools", [None, "", " ", "[]", [], "null"])
def test_no_tools_are_none(tools: object) -> None:
    assert read({"messages": CHAT, "tools": tools}).tools is None


# text


def test_text_is_kept_to_the_letter() -> None:
    example = read({"text": "  One.\r\nTwo.\n", "id": 1})
    assert example == Example(row_id="rows.jsonl:7", kind="text", format="text", text="  One.\r\nTwo.\n")
    assert read({"body": "One."}, columns={"text": "body"}, system_prompt="Be brief.").messages == ()


# preferences

GOOD, BAD = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": "2+2?", "chosen": 4, "rejected": 5},
        {"prompt": [CHAT[0]], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2+2?", "chosen": GOOD, "rejected": BAD},
        {"messages": [CHAT[0]], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {"chosen": [CHAT[0], GOOD], "rejected": [CHAT[0], BAD]},
        {"prompt": "2+2?", "chosen": [CHAT[0], GOOD], "rejected": [CHAT[0], BAD]},
        {"prompt": "2+2?", "chosen": "4", "rejected": "5", "messages": [{"role": "user", "content": "3+3?"}]},
    ],
    ids=[
        "text",
        "numbers",
        "turns",
        "one turn",
        "messages",
        "sharegpt",
        "implicit",
        "prompt said twice",
        "prompt before messages",
    ],
)
def test_a_pair_is_one_prompt_and_two_answers(row: dict[str, Any]) -> None:
    example = read(row, system_prompt="Be brief.")
    assert (example.kind, example.format) == ("preference", "preference")
    assert example.messages == (system("Be brief."), user("2+2?"), assistant("4"))
    assert example.rejected == (assistant("5"),)


def test_the_implicit_prompt_is_all_that_both_conversations_share() -> None:
    shared = [{"role": "system", "content": "Count."}, *CHAT, {"role": "user", "content": "Sure?"}]
    example = read({"chosen": [*shared, {**GOOD, "content": "Yes."}], "rejected": [*shared, {**BAD, "content": "No."}]})
    assert [message.content for message in example.messages] == ["Count.", "2+2?", "4", "Sure?", "Yes."]
    assert example.rejected == (assistant("No."),)


def test_assistant_turns_at_the_end_of_the_prompt_belong_to_both_answers() -> None:
    row = {"prompt": [CHAT[0], {"role": "assistant", "content": "It is"}], "chosen": "4", "rejected": "5"}
    example = read(row)
    assert example.messages == (user("2+2?"), assistant("It is"), assistant("4"))
    assert example.rejected == (assistant("It is"), assistant("5"))


@pytest.mark.parametrize(
    ("label", "desirable"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)],
)
def test_a_label_says_whether_the_answer_is_wanted(label: object, desirable: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": CHAT, "label": label},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "label": label},
        {"prompt": "2+2?", "completion": "4", "label": label},
    ]
    for row in rows:
        assert read(row) == Example(
            row_id="rows.jsonl:7",
            kind="unpaired_preference",
            format="unpaired_preference",
            messages=(user("2+2?"), assistant("4")),
            desirable=desirable,
        )


def test_rows_of_mixed_schemas_each_find_their_own_format() -> None:
    rows = [{"prompt": "2+2?", "completion": "4"}, {"messages": CHAT}, {"instruction": "2+2?", "output": "4"}]
    examples = [read(row) for row in rows + rows]
    assert [example.format for example in examples] == ["prompt_completion", "messages", "alpaca"] * 2
    assert {example.messages for example in examples} == {(user("2+2?"), assistant("4"))}


def test_a_set_format_reads_only_its_own_columns() -> None:
    row = {"instruction": "Add.", "output": "4", "prompt": "2+2?", "completion": "four", "text": "t"}
    assert read(row, format="prompt_completion").messages == (user("2+2?"), assistant("four"))
    assert read(row, format="alpaca").messages == (user("Add."), assistant("4"))
    assert read(row, format="text").text == "t"
