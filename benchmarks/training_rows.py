"""Rows and a model for the training benchmark: real mathematics problems, and chats whose lengths have a long tail."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.data_preparation_rows import Sources, make_rows

EXCHANGES = (1, 1, 1, 1, 1, 2, 2, 3, 4, 6)
"""Question and answer pairs of a chat, drawn evenly: half of the chats have one, a tenth has six."""
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""With 16,000 tokens, 9.2 million parameters."""
HELD_OUT_ROWS = 16

Chat = list[dict[str, str]]


def problem_rows(sources: Sources) -> Iterator[Chat]:
    """The problems of GSM8K as they stand."""
    for question, answer in sources.problems:
        yield [
            {"role": "user", "content": " ".join(question)},
            {"role": "assistant", "content": "\n".join(answer)},
        ]


def chat_rows(sources: Sources, seed: int) -> Iterator[Chat]:
    """Chats of one to six exchanges without end."""
    draw = random.Random(seed)
    exchanges = make_rows(sources, seed)
    while True:
        yield [message for pair in islice(exchanges, draw.choice(EXCHANGES)) for message in pair]


def write_chats(chats: Iterator[Chat], tokenizer: Path, train: Path, held_out: Path, rows: int, longest: int) -> None:
    """Write `rows` chats of at most `longest` tokens, and a few more to hold out."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template
    fitting = (chat for chat in chats if len(encode(chat, return_dict=False)) <= longest)
    for path, count in ((train, rows), (held_out, HELD_OUT_ROWS)):
        lines = (json.dumps({"messages": chat}) + "\n" for chat in islice(fitting, count))
        path.write_text("".join(lines), encoding="utf-8")


def grow_model(tiny: Path, folder: Path) -> int:
    """Write a random Llama of `SHAPE` with the tokenizer of a tiny one; return its parameters."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, **SHAPE, **ids))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))
