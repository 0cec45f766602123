"""Preference rows for the tiny model: questions with a right and a wrong colour, as prepare leaves them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_model import COLOURS, TEMPLATE, put_record, question, write_rows
from transformers import PreTrainedTokenizerFast

from tuneline.contracts.artifacts import LengthSummary, PreparedData
from tuneline.contracts.fingerprint import sha256_text
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem, PreparedRow


def make_preferences(folder: Path, base: Path, kind: str, *, train_rows: int = 96, held_out_rows: int = 24) -> Path:
    """Write a `PreparedData` artifact of kind `preference`, `unpaired_preference` or `text`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    items = [_ITEMS[kind](tokenizer, number) for number in range(train_rows + held_out_rows)]
    train, held_out = items[:train_rows], items[train_rows:]
    rows = [{name: value for name, value in item.items() if name in PreparedRow.model_fields} for item in train]
    write_rows(folder / PreparedData.TRAIN, PreparedRow, rows)
    write_rows(folder / PreparedData.HELD_OUT, PreparedItem, held_out)
    tokenizer.save_pretrained(folder / PreparedData.TOKENIZER)
    return put_record(folder, "prepare", _record(kind, rows, held_out_rows, tokenizer.eos_token_id))


def _record(kind: str, rows: Sequence[dict[str, Any]], held_out_rows: int, stop_id: int) -> PreparedData:
    lengths = sorted(len(row["input_ids"]) for row in rows)
    rejected = [len(row.get("rejected_input_ids") or ()) for row in rows]
    return PreparedData(
        kind=kind,
        train_rows=len(rows),
        held_out_rows=held_out_rows,
        retention_rows=0,
        train_tokens=sum(lengths),
        learned_tokens=sum(label != IGNORED_LABEL for row in rows for label in row["labels"]),
        rejected_tokens=sum(rejected),
        longest_rejected_tokens=max(rejected),
        desirable_rows=sum(bool(row.get("desirable")) for row in rows),
        packs=len(rows),
        lengths=LengthSummary(p50=lengths[len(rows) // 2], **dict.fromkeys(("p90", "p95", "p99", "max"), lengths[-1])),
        stop_token_ids=(stop_id,),
        template_sha256=sha256_text(TEMPLATE),
        receipt_sha256=sha256_text(""),
    )


def _answered(tokenizer: PreTrainedTokenizerFast, number: int, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question(number)[0]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(f"{answer}<|end|>", add_special_tokens=False)["input_ids"]
    return {
        "row_id": f"rows.jsonl:{number + 1}",
        "input_ids": prompt_ids + answer_ids,
        "labels": [IGNORED_LABEL] * len(prompt_ids) + answer_ids,
        "messages": json.dumps(messages),
        "answer": answer,
        "prompt_ids": prompt_ids,
        "answer_ids": answer_ids,
    }


def _wrong(number: int) -> str:
    return COLOURS[(COLOURS.index(question(number)[1]) + 1) % len(COLOURS)]


def _pair(tokenizer: PreTrainedTokenizerFast, number: int) -> dict[str, Any]:
    worse = _answered(tokenizer, number, f"{_wrong(number)} or {_wrong(number + 1)}")
    chosen = _answered(tokenizer, number, question(number)[1])
    return {**chosen, "rejected_input_ids": worse["input_ids"], "rejected_labels": worse["labels"]}


def _labelled(tokenizer: PreTrainedTokenizerFast, number: int) -> dict[str, Any]:
    wanted = number % 4 != 0  # three of four
    answer = question(number)[1] if wanted else _wrong(number)
    return {**_answered(tokenizer, number, answer), "desirable": wanted}


def _text(tokenizer: PreTrainedTokenizerFast, number: int) -> dict[str, Any]:
    ids = tokenizer(" ".join(question(number)) + "<|end|>", add_special_tokens=False)["input_ids"]
    return {
        "row_id": f"rows.jsonl:{number + 1}",
        "input_ids": ids,
        "labels": [IGNORED_LABEL, *ids[1:]],
        "messages": "[]",
        "answer": "",
        "prompt_ids": ids[:1],
        "answer_ids": ids[1:],
    }


_ITEMS = {"preference": _pair, "unpaired_preference": _labelled, "text": _text}
