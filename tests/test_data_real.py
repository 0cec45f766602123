"""Real rows, which lie beside the project where they are at hand: receipts say what counting by hand gives."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.jobs import Job
from tuneline.contracts.receipt import Receipt
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.spec_loading import load_spec
from tuneline.data import prepare as stage

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
BASE = ROOT / "examples" / "quickstart" / "base"
TOOLS_TEMPLATE = ROOT / "examples" / "templates" / "chatml_tools.jinja"
END = "<|im_end|>"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "worker_count", lambda: 1)
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)


def prepare(folder: Path, data: Mapping[str, Any] | DataSpec) -> Receipt:
    model = {"base": str(BASE), "chat_template": str(TOOLS_TEMPLATE)}
    spec = RunSpec.model_validate({"name": "real", "model": model, "data": data})
    out_dir = folder / "out"
    out_dir.mkdir()
    stage.prepare(Job(stage="prepare", spec=spec, inputs={"base": BASE}, out_dir=out_dir), lambda event: None)
    return Receipt.model_validate_json((out_dir / PreparedData.RECEIPT).read_text(encoding="utf-8"))


def token_count(texts: Iterable[str]) -> int:
    """Tokens of texts, each by itself: special tokens between them keep them apart in a conversation too."""
    return sum(len(ids) for ids in AutoTokenizer.from_pretrained(BASE)(list(texts))["input_ids"])


def steps_of(receipt: Receipt, data_set: str) -> dict[str, tuple[int, int]]:
    return {step.step: (step.rows_in, step.rows_out) for step in receipt.steps if step.data_set == data_set}


def banking77(name: str) -> list[tuple[str, str]]:
    with (DATA / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [(row["text"], row["category"]) for row in csv.DictReader(stream)]


def test_banking77(tmp_path: Path) -> None:
    receipt = prepare(tmp_path, load_spec(ROOT / "configs" / "banking77.yaml").data)
    train, test = banking77("train"), banking77("test")
    assert (len(train), len(test)) == (10_003, 3_080)
    unique = list(dict.fromkeys((text.strip(), label) for text, label in train))
    assert receipt.rows.train == len(unique)
    assert receipt.rows.held_out == 3_080
    assert {line.data_set: line.rows_read for line in receipt.sources} == {"train": 10_003, "held_out": 3_080}
    assert receipt.tokens.learned_by_role["assistant"] == token_count(label for _, label in unique)
    assert receipt.tokens.by_role["user"] == token_count(text for text, _ in unique)
    assert receipt.checks.ends_with_stop_share == 1.0
    asked = {text.strip() for text, _ in test}
    assert receipt.leaks[0].exact_prompts.rows == sum(text in asked for text, _ in unique)
    labels = {text: {label for one, label in unique if one == text} for text, _ in unique[:300]}
    assert all(len(found) == 1 for found in labels.values())


def test_gsm8k(tmp_path: Path) -> None:
    files = {name: DATA / "gsm8k" / f"{name}.jsonl" for name in ("train", "test")}
    limit = 400
    data = {"train": str(files["train"]), "held_out": str(files["test"]), "over_length": "drop"}
    receipt = prepare(tmp_path, {**data, "max_length_tokens": limit})
    rows = [json.loads(line) for line in files["train"].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 7_473
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    asked = [f"<|im_start|>user\n{row['question']}{END}\n<|im_start|>assistant\n" for row in rows]
    answers = [f"{row['answer']}{END}" for row in rows]
    lengths = [len(ids) for ids in tokenizer([a + b + "\n" for a, b in zip(asked, answers, strict=True)])["input_ids"]]
    fitting = [index for index, length in enumerate(lengths) if length <= limit]
    assert steps_of(receipt, "train")["render"] == (7_473, 7_473)
    assert steps_of(receipt, "train")["fit the length"] == (7_473, len(fitting))
    assert receipt.tokens.train == sum(lengths[index] for index in fitting)
    assert receipt.tokens.learned == token_count(answers[index] for index in fitting)
    assert receipt.lengths.max == max(lengths[index] for index in fitting)
    assert sum(one.rows for one in receipt.length_histogram) == len(fitting) == receipt.rows.train
    in_use = next(one for one in receipt.length_limits if one.limit_tokens == limit)
    assert in_use.rows_over == 7_473 - len(fitting)
    whole = token_count(answers)
    assert in_use.learned_share_lost_by_drop == pytest.approx(1 - receipt.tokens.learned / whole, abs=1e-12)


def runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + 13]) for start in range(len(words) - 12)}


def test_gsm8k_leaks_are_those_that_comparing_every_run_of_13_words_finds(tmp_path: Path) -> None:

    files = {name: DATA / "gsm8k" / f"{name}.jsonl" for name in ("train", "test")}
    data = {"train": str(files["train"]), "held_out": str(files["test"]), "max_length_tokens": 2048}
    receipt = prepare(tmp_path, data)
    texts = {
        name: [
            re.findall(r"\w+", f"{row['question']}\n{row['answer']}".lower())
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        ]
        for name, path in files.items()
    }
    seen = Counter(run for words in texts["test"] for run in runs(words))
    assert max(seen.values()) < 0.1 * len(texts["test"])  # none is common enough to be a template's
    leaking = [
        number for number, words in enumerate(texts["train"], start=1) if not seen.keys().isdisjoint(runs(words))
    ]
    assert receipt.leaks[0].ngrams.rows == len(leaking)
    named = [int(example.split(": ")[0].rsplit(":", 1)[1]) for example in receipt.leaks[0].ngrams.examples]
    assert named == leaking[: len(named)]


def formats(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DATA / "formats" / name).read_text(encoding="utf-8"))
    assert len(rows) == 300
    return rows


def unique_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(item) for key, item in sorted(value.items())}
        if isinstance(value, list):
            return [stripped(item) for item in value]
        return value.strip() if isinstance(value, str) else value

    return list({json.dumps(stripped(row)): row for row in reversed(rows)}.values())[::-1]


def test_preference_pairs(tmp_path: Path) -> None:
    rows = unique_rows(formats("dpo_en_demo.json"))
    receipt = prepare(tmp_path, {"train": str(DATA / "formats" / "dpo_en_demo.json"), "max_length_tokens": 16_384})
    assert receipt.kind == "preference"
    assert dict(receipt.sources[0].formats) == {"preference": 300}
    assert receipt.rows.train + receipt.rows.held_out == len(rows)
    assert receipt.checks.ends_with_stop_share == 1.0


def test_unpaired_preferences(tmp_path: Path) -> None:
    rows = unique_rows(formats("kto_en_demo.json"))
    receipt = prepare(tmp_path, {"train": str(DATA / "formats" / "kto_en_demo.json"), "max_length_tokens": 16_384})
    assert receipt.kind == "unpaired_preference"
    assert receipt.rows.train + receipt.rows.held_out == len(rows)
    assert dict(receipt.sources[0].formats) == {"unpaired_preference": 300}


def turn_text(turn: Mapping[str, str]) -> str:
    if turn["from"] != "function_call":
        return turn["value"] + END
    call = json.loads(turn["value"])
    return (
        "<tool_call>"
        + json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
        + f"</tool_call>{END}"
    )


def test_tool_calls(tmp_path: Path) -> None:
    path = DATA / "formats" / "glaive_toolcall_en_demo.json"
    rows = unique_rows(formats(path.name))
    data = {"train": str(path), "held_out": str(path), "max_length_tokens": 16_384}
    receipt = prepare(tmp_path, data)
    assert dict(receipt.sources[0].formats) == {"sharegpt": 300}
    assert (receipt.rows.train, receipt.rows.held_out) == (len(rows), 300)
    learned = [turn for row in rows for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")]
    assert receipt.tokens.learned == token_count(turn_text(turn) for turn in learned)
    said = [turn["value"].strip() for row in rows for turn in row["conversations"] if turn["from"] == "human"]
    assert abs(receipt.tokens.by_role["user"] - token_count(said)) <= 0.001 * token_count(said)
    assert receipt.checks.altered_rows == 0
    assert receipt.leaks[0].items_touched == 300
