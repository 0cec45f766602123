"""Real rows, which lie beside the project where they are at hand: what is read is what the files hold."""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.records import Example
from tuneline.data.formats.read import read_example
from tuneline.data.rows import SourceRow

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")


def rows_of(path: str) -> list[dict[str, Any]]:
    file = DATA / path
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix == ".csv":
            return list(csv.DictReader(stream))
        return [json.loads(line) for line in stream] if file.suffix == ".jsonl" else json.load(stream)


def read_all(rows: Iterable[dict[str, Any]], **settings: Any) -> list[Example]:
    spec = DataSpec(train="rows", **settings)
    return [read_example(SourceRow(f"rows#{number}", row), spec) for number, row in enumerate(rows)]


def roles(examples: Iterable[Example]) -> Counter[str]:
    return Counter(message.role for example in examples for message in example.messages)


def contents(example: Example) -> list[str]:
    return [message.content for message in example.messages]


def test_glaive_tool_calls_are_read_whole() -> None:
    rows = rows_of("formats/glaive_toolcall_en_demo.json")
    examples = read_all(rows)
    turns = Counter(turn["from"] for row in rows for turn in row["conversations"])
    assert {(example.kind, example.format) for example in examples} == {("conversation", "sharegpt")}
    assert roles(examples) == {
        "user": turns["human"],
        "assistant": turns["gpt"] + turns["function_call"],
        "tool": turns["observation"],
    }
    assert sum(turns.values()) == 1_914
    for row, example in zip(rows, examples, strict=True):
        assert contents(example) == [
            "" if turn["from"] == "function_call" else turn["value"] for turn in row["conversations"]
        ]
        said = [json.loads(turn["value"]) for turn in row["conversations"] if turn["from"] == "function_call"]
        calls = [call for message in example.messages for call in message.tool_calls]
        assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls] == said
        tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"])]
        assert (json.loads(example.tools) if example.tools else []) == tools
    assert sum(len(message.tool_calls) for example in examples for message in example.messages) == 211
    assert sum(example.tools is None for example in examples) == sum(row["tools"] == "[]" for row in rows) == 109


def test_dpo_pairs_are_read_whole() -> None:
    rows = rows_of("formats/dpo_en_demo.json")
    examples = read_all(rows)
    turns = Counter(turn["from"] for row in rows for turn in row["conversations"])
    assert {(example.kind, example.format) for example in examples} == {("preference", "preference")}
    assert roles(examples) == {
        "system": turns["system"],
        "user": turns["human"],
        "assistant": turns["gpt"] + len(rows),
    }
    assert len(rows) == 300
    for row, example in zip(rows, examples, strict=True):
        assert contents(example) == [turn["value"] for turn in row["conversations"]] + [row["chosen"]["value"]]
        assert [message.content for message in example.rejected] == [row["rejected"]["value"]]


def test_a_system_prompt_goes_before_the_dpo_rows_that_have_none() -> None:
    rows = rows_of("formats/dpo_en_demo.json")
    without = [row for row in rows if row["conversations"][0]["from"] != "system"]
    examples = read_all(rows, system_prompt="Be brief.")
    assert roles(examples)["system"] == len(rows)
    assert sum(contents(example)[0] == "Be brief." for example in examples) == len(without) == 220


def test_kto_labels_are_read_whole() -> None:
    rows = rows_of("formats/kto_en_demo.json")
    examples = read_all(rows)
    assert {(example.kind, example.format) for example in examples} == {("unpaired_preference", "unpaired_preference")}
    assert [example.desirable for example in examples] == [row["label"] for row in rows]
    assert [contents(example) for example in examples] == [[t["content"] for t in row["messages"]] for row in rows]
    assert roles(examples) == Counter(turn["role"] for row in rows for turn in row["messages"])
    assert len(examples) == 300


def test_banking77_is_a_text_and_its_category() -> None:
    rows = rows_of("banking77/train.csv")
    examples = read_all(rows, columns={"prompt": "text", "completion": "category"})
    assert [contents(example) for example in examples] == [[row["text"], row["category"]] for row in rows]
    assert {(example.kind, example.format) for example in examples} == {("conversation", "prompt_completion")}
    assert len(examples) == 10_003


@pytest.mark.parametrize(("file", "count"), [("train", 7_473), ("test", 1_319)])
def test_gsm8k_is_a_question_and_its_answer_without_being_told(file: str, count: int) -> None:
    rows = rows_of(f"gsm8k/{file}.jsonl")
    examples = read_all(rows)
    assert [contents(example) for example in examples] == [[row["question"], row["answer"]] for row in rows]
    assert {(example.kind, example.format) for example in examples} == {("conversation", "prompt_completion")}
    assert len(examples) == count
