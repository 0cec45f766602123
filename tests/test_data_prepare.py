"""The prepare stage as the flow starts it: a child process of its own, on files with every fault."""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny_model import make_tiny_base
from transformers import AutoTokenizer

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import UserError
from tuneline.contracts.jobs import JOB, RESULT, Job, JobResult, JobStatus, ProgressEvent
from tuneline.contracts.receipt import LeakLine, Receipt
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem, PreparedRow
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import write_whole
from tuneline.data import prepare as stage

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a prepare stage left behind: its record, or its problems."""

    record: PreparedData | None
    problems: list[str]
    folder: Path
    events: list[ProgressEvent]

    @property
    def receipt(self) -> Receipt:
        assert self.problems == []
        return Receipt.model_validate_json((self.folder / PreparedData.RECEIPT).read_text(encoding="utf-8"))

    def rows(self, name: str = PreparedData.TRAIN) -> list[PreparedRow]:
        assert self.problems == []
        kind = PreparedRow if name == PreparedData.TRAIN else PreparedItem
        return [kind.model_validate(row) for row in Dataset.from_file(str(self.folder / name))]

    @property
    def dropped(self) -> list[tuple[str, str, str]]:
        lines = [json.loads(line) for line in (self.folder / PreparedData.DROPPED).read_text().splitlines()]
        return [(Path(line["row_id"]).name, line["step"], line["reason"]) for line in lines]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this process: it may have run a tokenizer in threads, and then must not fork."""
    monkeypatch.setattr(stage, "worker_count", lambda: 1)
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))


def make_job(folder: Path, base: Path, model: Mapping[str, Any], data: Mapping[str, Any]) -> Job:
    folder.mkdir()
    document = {"name": "t", "model": {"base": str(base), **model}, "data": data}
    return Job(stage="prepare", spec=RunSpec.model_validate(document), inputs={"base": base}, out_dir=folder)


def prepare(folder: Path, base: Path, model: Mapping[str, Any] | None = None, **data: Any) -> Outcome:
    job, events = make_job(folder / "out", base, model or {}, data), list[ProgressEvent]()
    try:
        return Outcome(stage.prepare(job, events.append), [], job.out_dir, events)
    except UserError as error:
        problems = [f"{problem.where}: {problem.what}" for problem in error.problems]
        return Outcome(None, problems, job.out_dir, events)


def answer_text(base: Path, ids: Sequence[int]) -> str:
    return str(AutoTokenizer.from_pretrained(base).decode(ids))


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"red kitchen {n}", "completion": f"green {n % 5}"} for n in range(start, start + count)]


def test_a_receipt_accounts_for_every_row_and_token(tmp_path: Path, base: Path) -> None:
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", questions(60)),
        held_out=write_rows(tmp_path / "held.jsonl", questions(20, start=50)),
        replay=write_rows(tmp_path / "replay.jsonl", questions(40, start=500)),
        replay_share=0.25,
        retention=write_rows(tmp_path / "retention.jsonl", questions(8, start=600)),
    )
    receipt, train = outcome.receipt, outcome.rows()
    record = outcome.record
    assert record is not None
    assert (record.kind, record.train_rows, record.held_out_rows, record.retention_rows) == ("conversation", 80, 20, 8)
    assert len(train) == 80
    assert record.train_tokens == sum(len(row.input_ids) for row in train) == receipt.tokens.train
    learned = sum(label != IGNORED_LABEL for row in train for label in row.labels)
    assert record.learned_tokens == learned == receipt.tokens.learned
    assert sum(receipt.tokens.by_role.values()) == receipt.tokens.train
    assert sum(receipt.tokens.learned_by_role.values()) == learned
    assert receipt.tokens.learned_by_role["user"] == 0
    assert {(line.data_set, line.rows_read) for line in receipt.sources} == {
        ("train", 60), ("held_out", 20), ("replay", 40), ("retention", 8)
    }  # fmt: skip
    assert [dict(line.formats) for line in receipt.sources] == [{"prompt_completion": n} for n in (60, 20, 40, 8)]
    assert receipt.checks.ends_with_stop_share == 1.0
    assert "".join(piece.text for piece in receipt.samples[0].pieces if piece.learned).endswith("<|end|>")
    assert [piece.stop for piece in receipt.samples[0].pieces] == [False, False, True]
    assert outcome.dropped == [(name, "draw 25% replay", "not drawn") for name, _, _ in outcome.dropped]
    assert len(outcome.dropped) == 20
    assert not (outcome.folder / "work").exists()


def test_every_step_hands_on_what_it_did_not_drop(tmp_path: Path, base: Path) -> None:
    rows = [*questions(40), *questions(5), {"prompt": "red", "completion": " "}, {"prompt": "red 0", "completion": 7}]
    receipt = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "t.jsonl", rows),
        max_train_rows=20,
        held_out_share=0.2,
        limits={"max_bad_rows_share": 0.1},
    ).receipt
    train = [step for step in receipt.steps if step.data_set == "train"]
    assert [step.step for step in train] == ["read", "drop duplicates", "split", "draw", "render", "fit the length"]
    for step, following in itertools.pairwise(train):
        assert step.rows_out == following.rows_in
        assert step.rows_in - step.rows_out == sum(reason.rows for reason in step.dropped)
    assert [(reason.reason, reason.rows) for step in train[:2] for reason in step.dropped] == [
        ("empty answer", 1), ("repeats another row", 5)
    ]  # fmt: skip
    assert train[1].dropped[0].examples[0].endswith("t.jsonl:41: repeats " + str(tmp_path / "t.jsonl:1"))
    assert train[-1].tokens_out == receipt.tokens.train
    assert [step.tokens_estimated for step in train] == [True, True, True, True, False, False]
    assert train[3].rows_out == 20 == receipt.rows.train


def test_items_are_what_a_server_would_be_asked(tmp_path: Path, base: Path) -> None:
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", questions(30)),
        held_out=write_rows(tmp_path / "held.jsonl", questions(3, start=50)),
    )
    item = outcome.rows(PreparedData.HELD_OUT)[0]
    assert isinstance(item, PreparedItem)
    assert item.prompt_ids + item.answer_ids == item.input_ids
    assert json.loads(item.messages) == [{"role": "user", "content": "red kitchen 50"}]
    assert item.answer == "green 0"


def test_progress_is_told_for_every_pass(tmp_path: Path, base: Path) -> None:
    events = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", questions(30)),
        held_out=write_rows(tmp_path / "held.jsonl", questions(3, start=50)),
    ).events
    assert [(event.note, event.done, event.planned) for event in events] == [
        ("read train", 30, 0), ("read held out", 3, 0), ("compare train with held out", 30, 30),
        ("render train", 30, 30), ("render held out", 3, 3),
    ]  # fmt: skip


LONG = {"prompt": "red " * 200, "completion": "green"}
PAIR = {"prompt": "red", "chosen": "green", "rejected": "blue"}
FAULTS: dict[str, tuple[list[Row], dict[str, Any], str]] = {
    "empty answers": (
        [*questions(30), {"prompt": "p", "completion": "  "}],
        {"cleaning": {"empty_answers": "fail"}},
        "data.cleaning.empty_answers: 1 rows have an empty answer",
    ),
    "misspelt column": (questions(30), {"columns": {"completion": "answer"}}, "no column `answer`"),
    "unknown columns": ([{"a": 1, "b": 2}] * 30, {}, "30 of 30 rows cannot be used"),
    "a bad row in ten": ([*questions(9), {"prompt": ["x"], "completion": "y"}], {}, "1 of 10 rows cannot be used"),
    "too long": ([LONG, *questions(30)], {"max_length_tokens": 64}, "1 rows are too long"),
    "no group column": (questions(30), {"held_out_group": "intent"}, "no column `intent`"),
    "no date": (questions(30), {"held_out_time": "prompt"}, "is neither a number nor a date"),
    "all held out": (questions(1), {"held_out_share": 0.999}, "the split leaves 0 rows to train on"),
    "several kinds": ([*questions(30), PAIR], {}, "the rows are of several kinds"),
    "conflicts": (
        [*questions(30), {"prompt": "red kitchen 1", "completion": "blue"}],
        {"cleaning": {"conflicts": "fail"}},
        "2 rows have the same prompt as another one and a different answer",
    ),
    "secrets": (
        [*questions(30), {"prompt": "my key is AKIAQWERTYUIOPASDFGH", "completion": "no"}],
        {"cleaning": {"secrets": "fail"}},
        "data.cleaning.secrets: rows hold AWS access key",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rows_is_one_clear_message_and_nothing_is_prepared(
    tmp_path: Path, base: Path, fault: str
) -> None:
    rows, fields, what = FAULTS[fault]
    outcome = prepare(tmp_path, base, train=write_rows(tmp_path / "train.jsonl", rows), **fields)
    assert any(what in problem for problem in outcome.problems), outcome.problems
    assert not (outcome.folder / PreparedData.RECEIPT).exists()


def test_a_few_unusable_rows_are_dropped_by_name_and_the_file_is_not_lost(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_rows(path, questions(400))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[17] = b'{"prompt": "half a li\n'
    lines[60] = b'{"prompt": "\xff", "completion": "x"}\n'
    lines[99] = b'{"prompt": null, "completion": "x"}\n'
    path.write_bytes(b"".join(lines))
    outcome = prepare(tmp_path, base, train=str(path))
    assert [line for line in outcome.dropped if line[1] == "read"] == [
        ("train.jsonl:18", "read", "cannot be used"),
        ("train.jsonl:61", "read", "cannot be used"),
        ("train.jsonl:100", "read", "cannot be used"),
    ]
    assert outcome.receipt.rows.train + outcome.receipt.rows.held_out == 397


def test_rows_of_mixed_schemas_between_files_find_their_own_formats(tmp_path: Path, base: Path) -> None:
    write_rows(tmp_path / "a.jsonl", questions(10))
    (tmp_path / "b.csv").write_text("question,answer\n" + "".join(f"how many {n},{n}\n" for n in range(10)))
    chat = [{"role": "user", "content": "blue?"}, {"role": "assistant", "content": "yes"}]
    write_rows(
        tmp_path / "c.jsonl",
        [{"messages": [*chat, {"role": "user", "content": f"and {n}"}, chat[1]]} for n in range(10)],
    )
    held_out = write_rows(tmp_path / "held.json", questions(3, start=90))
    outcome = prepare(tmp_path, base, train=str(tmp_path / "[abc].*"), held_out=held_out)
    assert dict(outcome.receipt.sources[0].formats) == {"prompt_completion": 20, "messages": 10}
    assert outcome.receipt.sources[0].files == 3
    assert outcome.receipt.rows.train == 30


def test_sources_are_mixed_by_weight(tmp_path: Path, base: Path) -> None:
    weights = {
        write_rows(tmp_path / "a.jsonl", questions(90)): 1,
        write_rows(tmp_path / "b.jsonl", questions(20, start=200)): 2,
    }
    held_out = write_rows(tmp_path / "held.jsonl", questions(3, start=500))
    outcome = prepare(tmp_path, base, train=weights, held_out=held_out)
    names = [Path(row.row_id).name.split(":")[0] for row in outcome.rows()]
    assert (names.count("a.jsonl"), names.count("b.jsonl")) == (10, 20)


@pytest.mark.parametrize(("policy", "rows", "leaking"), [("report", 40, 10), ("drop_from_train", 30, 10)])
def test_training_rows_that_are_asked_too_are_reported_or_dropped(
    tmp_path: Path, base: Path, policy: str, rows: int, leaking: int
) -> None:
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", questions(40)),
        held_out=write_rows(tmp_path / "held.jsonl", questions(20, start=30)),
        leaks=policy,
    )
    line: LeakLine = outcome.receipt.leaks[0]
    assert (line.exact_prompts.rows, line.items_touched) == (leaking, 10)
    assert line.exact_prompts.examples[0].endswith(f"train.jsonl:31: repeats {tmp_path / 'held.jsonl:1'}")
    assert outcome.receipt.rows.train == rows
    named = [name for name, step, _ in outcome.dropped if step == "drop leaks"]
    assert named == ([f"train.jsonl:{number}" for number in range(31, 41)] if policy == "drop_from_train" else [])


def test_under_fail_a_leak_is_refused_with_its_rows(tmp_path: Path, base: Path) -> None:
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", questions(40)),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=39)),
        leaks="fail",
    )
    assert outcome.problems[-1] == "data.leaks: 1 training rows stand in an evaluation set too"
    assert "train.jsonl:40: repeats" in outcome.problems[0]


@pytest.mark.parametrize(("policy", "kept"), [("keep", 42), ("drop", 40)])
def test_conflicting_answers_are_kept_or_the_first_is(tmp_path: Path, base: Path, policy: str, kept: int) -> None:
    conflicting = [{"prompt": f"red kitchen {n}", "completion": "blue"} for n in (3, 4)]
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", [*questions(40), *conflicting]),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=90)),
        cleaning={"conflicts": policy},
    )
    assert outcome.receipt.rows.train == kept
    assert ("train.jsonl:41" in [name for name, _, _ in outcome.dropped]) == (policy == "drop")


def test_secrets_are_taken_out_of_what_is_learned(tmp_path: Path, base: Path) -> None:
    rows = [*questions(30), {"prompt": "who?", "completion": "write to jo@example.org"}]
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", rows),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=90)),
        cleaning={"personal_data": "redact"},
    )
    noted = [reason for step in outcome.receipt.steps for reason in step.noted]
    assert [(reason.reason, reason.rows) for reason in noted] == [("e-mail address", 1)]
    assert "jo@example.org" not in (outcome.folder / PreparedData.TRAIN).read_bytes().decode("latin1")


@pytest.mark.parametrize(
    ("policy", "rows", "longest"), [("drop", 30, 20), ("truncate_left", 31, 64), ("split", 30, 64)]
)
def test_long_rows_are_dropped_cut_or_split_as_asked_and_counted(
    tmp_path: Path, base: Path, policy: str, rows: int, longest: int
) -> None:
    long = {"prompt": "red " * 70, "completion": "red " * 70} if policy == "split" else LONG
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", [long, *questions(30)]),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=90)),
        max_length_tokens=64,
        over_length=policy,
    )
    train = outcome.rows()
    assert max(len(row.input_ids) for row in train) <= longest
    whole = [row for row in train if ":1:" not in Path(row.row_id).name]
    assert len(whole) == rows
    if policy == "split":
        pieces = train[: len(train) - rows]
        assert all(len(row.input_ids) == 64 for row in pieces[:-1])
        ids = [token for row in pieces for token in row.input_ids]
        assert answer_text(base, ids).endswith("red " * 70 + "<|end|>")
    step = next(step for step in outcome.receipt.steps if step.step == "fit the length")
    assert sum(reason.rows for reason in (*step.dropped, *step.noted)) == 1
    assert "train.jsonl:1" in (*step.dropped, *step.noted)[0].examples[0]


def test_a_text_of_ten_megabytes_is_one_row_that_is_too_long(tmp_path: Path, base: Path) -> None:
    rows = [*questions(40), {"prompt": "red kitchen " * 850_000, "completion": "green"}]
    outcome = prepare(
        tmp_path,
        base,
        train=write_rows(tmp_path / "train.jsonl", rows),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=90)),
        over_length="drop",
    )
    assert outcome.dropped == [("train.jsonl:41", "fit the length", "too long")]
    assert outcome.receipt.lengths.max < 20


def test_a_conversation_with_two_bos_tokens_is_never_trained(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "bos"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.bos_token = "<|system|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    rows = [*questions(200), {"prompt": "<|system|>", "completion": "red"}]
    held_out = write_rows(tmp_path / "held.jsonl", questions(5, start=900))
    outcome = prepare(tmp_path, folder, train=write_rows(tmp_path / "train.jsonl", rows), held_out=held_out)
    assert ("train.jsonl:201", "render", "two BOS tokens") in outcome.dropped
    assert outcome.receipt.checks.two_bos_rows == 1
    bos = tokenizer.bos_token_id
    assert {row.input_ids.count(bos) for row in outcome.rows()} == {1}


def test_a_template_without_a_place_for_tools_is_refused(tmp_path: Path, base: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
    turns = [call, {"role": "tool", "content": "hot"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": [{"role": "user", "content": f"sun in {n}?"}, *turns]} for n in range(50)]
    outcome = prepare(tmp_path, base, train=write_rows(tmp_path / "train.jsonl", rows))
    assert any("lose some of their words in the chat template" in problem for problem in outcome.problems)


@pytest.mark.parametrize(("with_system", "prepared"), [(1, 199), (5, 0)])
def test_rows_that_the_template_refuses_are_dropped_while_they_are_few(
    tmp_path: Path, base: Path, with_system: int, prepared: int
) -> None:
    template = tmp_path / "no_system.jinja"
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    template.write_text(refusing + (base / "chat_template.jinja").read_text())
    rows = [{**row, "system": "be brief"} if n < with_system else row for n, row in enumerate(questions(200))]
    outcome = prepare(
        tmp_path,
        base,
        model={"chat_template": str(template)},
        train=write_rows(tmp_path / "train.jsonl", rows),
        held_out=write_rows(tmp_path / "held.jsonl", questions(5, start=900)),
    )
    if prepared:
        assert outcome.dropped == [("train.jsonl:1", "render", "the template cannot render it")]
        assert outcome.receipt.rows.train == prepared
    else:
        assert "5 of 200 rows cannot be rendered by the chat template" in outcome.problems[-1]
        assert "the chat template refuses it: no system turn" in outcome.problems[0]


def test_answers_that_no_stop_token_ends_are_refused(tmp_path: Path, base: Path) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
                        "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    rows = write_rows(tmp_path / "train.jsonl", questions(30))
    outcome = prepare(tmp_path, base, model={"chat_template": str(template)}, train=rows)
    assert any("only 0.0% of the answers end with a stop token" in problem for problem in outcome.problems)


def test_pairs_are_prepared_with_both_answers(tmp_path: Path, base: Path) -> None:
    rows = [{"prompt": f"red {n}", "chosen": "green", "rejected": "blue garden"} for n in range(50)]
    outcome = prepare(tmp_path, base, train=write_rows(tmp_path / "train.jsonl", rows))
    assert outcome.receipt.kind == "preference"
    row = outcome.rows()[0]
    assert row.rejected_input_ids is not None and row.rejected_labels is not None
    assert [label for label in row.rejected_labels if label != IGNORED_LABEL] == row.rejected_input_ids[-len(
        [label for label in row.rejected_labels if label != IGNORED_LABEL]):]  # fmt: skip


def test_a_child_process_makes_the_same_with_several_workers_as_one_worker_does(tmp_path: Path, base: Path) -> None:
    data = {
        "train": write_rows(tmp_path / "train.jsonl", questions(5_000)),
        "cleaning": {"near_duplicates": "report"},
    }
    one = make_job(tmp_path / "one", base, {}, data)
    stage.prepare(one, lambda event: None)
    several = make_job(tmp_path / "several", base, {}, data)
    write_whole(tmp_path / JOB, several.model_dump_json())
    program = (
        "import sys; from tuneline.contracts.jobs import run_job; from tuneline.data import prepare as stage; "
        "stage.worker_count = lambda: 3; sys.exit(run_job(sys.argv[1:], stage.prepare))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    assert JobResult.model_validate_json((tmp_path / RESULT).read_text()).status is JobStatus.COMPLETED
    files = [{path.name: path.read_bytes() for path in job.out_dir.glob("*.*")} for job in (one, several)]
    assert sorted(files[0]) == ["dropped.jsonl", "held_out.arrow", "packs.arrow", "receipt.json", "train.arrow"]
    assert files[0] == files[1]
