"""A random Llama of 0.1 M parameters, its tokenizer, and the artifacts of prepare and plan made for it.

`make_tiny_base` and `make_prepared` write what the stages read, in under a second, without a network.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tuneline.contracts.artifacts import Estimate, LengthSummary, Plan, PreparedData, Record
from tuneline.contracts.fingerprint import sha256_text
from tuneline.contracts.jobs import Job
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem, PreparedRow
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.store import RECORD, StoredRecord, write_whole

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
PLACES = ("kitchen", "garden", "library", "harbour")


def make_tiny_base(folder: Path, *, dtype: str = "float32", tied: bool = False, hidden_size: int = 64) -> Path:
    """Write a random base model with its tokenizer, as the Hub would lay it out."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,  # ten times wider than a pre-trained Llama's start: answers differ from token to token
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prepared(folder: Path, base: Path, *, train_rows: int = 96, held_out_rows: int = 24) -> Path:
    """Write a `PreparedData` artifact: a question about the colour of a thing, and its one-word answer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    items = [_item(tokenizer, number) for number in range(train_rows + held_out_rows)]
    train, held_out = items[:train_rows], items[train_rows:]
    columns = ("row_id", "input_ids", "labels")
    write_rows(folder / PreparedData.TRAIN, PreparedRow, [{key: item[key] for key in columns} for item in train])
    write_rows(folder / PreparedData.HELD_OUT, PreparedItem, held_out)
    write_rows(folder / PreparedData.RETENTION, PreparedItem, held_out[: held_out_rows // 2])
    tokenizer.save_pretrained(folder / PreparedData.TOKENIZER)
    stop_ids = [tokenizer.eos_token_id]
    generation = GenerationConfig(eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id)
    generation.save_pretrained(folder / PreparedData.TOKENIZER)
    lengths = [len(item["input_ids"]) for item in train]
    record = PreparedData(
        kind="conversation",
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        retention_rows=held_out_rows // 2,
        train_tokens=sum(lengths),
        learned_tokens=sum(len(item["answer_ids"]) for item in train),
        packs=train_rows,
        lengths=LengthSummary(
            p50=sorted(lengths)[train_rows // 2],
            p90=max(lengths),
            p95=max(lengths),
            p99=max(lengths),
            max=max(lengths),
        ),
        stop_token_ids=tuple(stop_ids),
        template_sha256=sha256_text(TEMPLATE),
        receipt_sha256=sha256_text(""),
    )
    return put_record(folder, "prepare", record)


def write_rows(path: Path, kind: type[PreparedRow], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as prepare does: an Arrow stream with every column of their kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([kind.model_validate(row).model_dump() for row in rows])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def make_plan(folder: Path, **changes: Any) -> Path:
    """Write a `Plan` artifact: 12 steps of one micro-batch of 8 rows unless changed."""
    nothing = Estimate(low=0.0, expected=0.0, high=0.0)
    plan = Plan(
        device="cpu",
        parameters=0,
        trainable_parameters=0,
        optimizer_steps=12,
        micro_batch_rows=8,
        accumulation_steps=1,
        activation_checkpointing=False,
        packing=False,
        memory_bytes=nothing,
        memory_limit_bytes=0,
        memory_parts_bytes={},
        tokens_per_second=nothing,
        hours=nothing,
        usd=None,
        derived=(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return put_record(folder, "plan", plan.model_copy(update=changes))


def make_job(stage: str, out_dir: Path, inputs: Mapping[str, Path], **sections: Mapping[str, Any]) -> Job:
    """Describe a job on a tiny model; `sections` are laid over the config's defaults."""
    document: dict[str, Any] = {
        "name": "tiny",
        "model": {"base": "tiny", "dtype": "float32"},
        "data": {"train": "rows.jsonl"},
        "training": {"learning_rate": 2e-3, "log_every_optimizer_steps": 1},
    }
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    out_dir.mkdir(parents=True, exist_ok=True)
    return Job(stage=stage, spec=RunSpec.model_validate(document), inputs=dict(inputs), out_dir=out_dir)


def put_record(folder: Path, stage: str, record: Record) -> Path:
    """Make a folder an artifact that `read_record` reads."""
    stored = StoredRecord(
        stage=stage, fingerprint="0", made_at="", seconds=0.0, artifact=record.model_dump(mode="json"), files=()
    )
    write_whole(folder / RECORD, stored.model_dump_json())
    return folder


def question(number: int) -> tuple[str, str]:
    """Return a question and its answer; the answer follows from the question's words."""
    place = PLACES[number % len(PLACES)]
    room = number // len(PLACES) % 24
    adjectives = " very" * (number % 3)  # lengths differ from row to row
    return f"Which colour has the{adjectives} large door {room} in the {place}?", COLOURS[(room + number % 4) % 6]


def _item(tokenizer: PreTrainedTokenizerFast, number: int) -> dict[str, Any]:
    prompt, answer = question(number)
    messages = [{"role": "user", "content": prompt}]
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


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(question(number)) for number in range(96)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
