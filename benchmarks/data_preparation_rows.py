"""Chat rows for the data preparation benchmark, made from the real rows at `../shared/data`, and a tiny model for them.

Row `n` depends on the seed and on the rows before it only, so that a smaller file is the beginning of a larger one.
"""

import csv
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABULARY_TOKENS = 16_000
TOKENIZER_ROWS = 20_000
"""Rows that the tokenizer is trained on: more of them change its merges little and cost a minute at a million rows."""
INTENT_SHARE = 0.2
INTENT_MESSAGES = 6
"""Customers' messages in one row: as many tokens as a mathematics row has."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_NUMBER = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.?!])\s+")


@dataclass(frozen=True)
class Sources:
    """The real rows: mathematics problems as lists of sentences and of lines of working, messages with their intent."""

    problems: list[tuple[list[str], list[str]]]
    messages: list[tuple[str, str]]


def read_sources(folder: Path = SOURCES) -> Sources:
    """Read the training rows of GSM8K and Banking77.

    Raises:
        FileNotFoundError: the folder is absent.
    """
    with (folder / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    with (folder / "banking77" / "train.csv").open(encoding="utf-8", newline="") as lines:
        messages = [(row["text"].strip(), row["category"]) for row in csv.DictReader(lines)]
    return Sources([(_SENTENCE.split(r["question"]), r["answer"].split("\n")) for r in records], messages)


def write_rows(sources: Sources, seed: int, counts: dict[Path, int]) -> None:
    """Write files of `{"messages": [user, assistant]}` lines, one after the other from the same series of rows."""
    rows = make_rows(sources, seed)
    for path, count in counts.items():
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"messages": row}) + "\n" for row in islice(rows, count))


def make_rows(sources: Sources, seed: int) -> Iterator[list[dict[str, str]]]:
    """Make conversations without end: recombined problems with other numbers, and lists of messages to be named."""
    draw = random.Random(seed)
    while True:
        user, assistant = _intents(sources, draw) if draw.random() < INTENT_SHARE else _problem(sources, draw)
        yield [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _intents(sources: Sources, draw: random.Random) -> tuple[str, str]:
    chosen = draw.choices(sources.messages, k=INTENT_MESSAGES)
    listed = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(chosen, start=1))
    named = "\n".join(f"{number}. {intent}" for number, (_, intent) in enumerate(chosen, start=1))
    return f"Name the intent of each message.\n{listed}", named


def _problem(sources: Sources, draw: random.Random) -> tuple[str, str]:
    """Join half of one problem and half of another; equal numbers stay equal, in the question and in the answer."""
    (first, first_lines), (second, second_lines) = draw.choices(sources.problems, k=2)
    question = " ".join([*first[: (len(first) + 1) // 2], *second[len(second) // 2 :]])
    answer = "\n".join([*first_lines[: len(first_lines) // 2], *second_lines[len(second_lines) // 2 :]])
    factor, addend = draw.randint(1, 9), draw.randint(1, 99)

    def other(number: re.Match[str]) -> str:
        return str(int(number[0]) * factor + addend)

    return _NUMBER.sub(other, question), _NUMBER.sub(other, answer)


def make_model(rows: Path, folder: Path) -> None:
    """Write a byte-level BPE tokenizer trained on the rows, with a chat template, and a random Llama of one layer.

    The template is Qwen2.5's as TRL ships it: TRL learns assistant turns only under templates equal to its own list
    character by character, and LLaMA-Factory knows the same one as `qwen`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(_texts(rows), TOKENIZER_ROWS), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[2],
        chat_template=_qwen_template(),
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    model.save_pretrained(folder)


def _texts(rows: Path) -> Iterator[str]:
    with rows.open(encoding="utf-8") as lines:
        for line in lines:
            yield "\n".join(message["content"] for message in json.loads(line)["messages"])


def _qwen_template() -> str:
    spec = importlib.util.find_spec("trl")  # found, not imported: that takes seconds and nothing of it is called
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
