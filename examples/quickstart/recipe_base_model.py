"""Make the quickstart's base model, a Llama of 3 million parameters: `python recipe_base_model.py [FOLDER]`.

It learns English from the docstrings of Python's standard library, which is on every machine, and then to answer
messages with JSON from `base_tasks_train.jsonl`. The support desk's intents and products are left for fine-tuning.
"""

import ast
import hashlib
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20261124
HERE = Path(__file__).resolve().parent

VOCABULARY_SIZE = 3072
MAX_POSITIONS = 512
IGNORED = -100
END_OF_TEXT, PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LANGUAGE_WINDOW_TOKENS = 128
LANGUAGE_EPOCHS = 1
CHAT_EPOCHS = 3
BATCH_ROWS = 16
LEARNING_RATE = 3e-3
WARMUP_SHARE = 0.05

Example = tuple[list[int], list[int]]
"""Token ids, and labels of the same length with IGNORED where nothing is to be learned."""


def standard_library_texts() -> list[str]:
    """Collect the docstrings of Python's standard library, and its language reference, in order of path.

    Python's patch releases differ in a few docstrings, and so does the model that is made from them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data"}
    paths = [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts)]
    texts = [text for path in paths for text in docstrings(path)] + [topics[name] for name in sorted(topics)]
    return list(dict.fromkeys(texts))


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of one module that are long enough to hold a sentence."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) > 40:
                yield text


def read_rows(name: str) -> list[dict[str, str]]:
    """Read one of the data files beside this recipe."""
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts` and give it the chat template."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\d|[^\W\d_]+|_|[^\w\s]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT, PADDING, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PADDING,
        additional_special_tokens=[END_OF_TEXT, TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained Llama: 4 layers, 4 heads of 64, grouped keys and values, tied embeddings."""
    stop_ids = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop_ids[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id
    )
    return model


def language_examples(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Example]:
    """Join all texts and cut them into windows of equal length; every token is learned."""
    separator = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    ids = [token for text in tokenizer(texts, verbose=False)["input_ids"] for token in [*text, separator]]
    windows = [ids[at : at + LANGUAGE_WINDOW_TOKENS] for at in range(0, len(ids), LANGUAGE_WINDOW_TOKENS)]
    return [(window, window) for window in windows]


def chat_examples(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> list[Example]:
    """Render each row as a chat of two turns; only the answer and the end of its turn are learned."""
    return [chat_example(tokenizer, row["message"], row["answer"]) for row in rows]


def chat_example(tokenizer: PreTrainedTokenizerFast, message: str, answer: str) -> Example:
    """Render one chat and its labels."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    reply = tokenizer(answer + TURN_END)["input_ids"]
    return prompt + reply, [IGNORED] * len(prompt) + reply


def batches_of(examples: list[Example], epochs: int) -> list[list[Example]]:
    """Group examples of like length into batches, in a new seeded order each epoch."""
    random = Random(SEED)
    batches: list[list[Example]] = []
    for _ in range(epochs):
        rows = random.sample(examples, len(examples))
        rows.sort(key=lambda example: len(example[0]))
        epoch = [rows[at : at + BATCH_ROWS] for at in range(0, len(rows), BATCH_ROWS)]
        batches += random.sample(epoch, len(epoch))
    return batches


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms.

    Muon (Jordan et al., 2024), scaled to AdamW's update size (Liu et al., 2025, arXiv:2502.16982), needs far fewer
    steps here than AdamW alone did in single runs at other rates, which is what makes ten minutes on one core enough.
    """
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.1, betas=(0.9, 0.95), fused=True),
    ]


def train(model: LlamaForCausalLM, batches: list[list[Example]], title: str) -> float:
    """Train in bfloat16 autocast with a warm-up and a cosine decay to zero; returns the mean loss of the last tenth."""
    optimizers = optimizers_of(model)
    warmup_steps = max(1, int(WARMUP_SHARE * len(batches)))
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(batches):
        decay = 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        losses.append(train_step(model, optimizers, batch, LEARNING_RATE * min((step + 1) / warmup_steps, decay)))
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(f"{title}: step {step + 1} of {len(batches)}, loss {losses[-1]:.3f}, {seconds:.0f} s", flush=True)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def train_step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], batch: list[Example], learning_rate: float
) -> float:
    """Take one step and return the loss."""
    input_ids, labels = collate(batch, model.config.pad_token_id)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.item())


def collate(batch: list[Example], padding_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad a batch on the right; causal attention needs no mask there, and padding is never a label."""
    longest = max(len(ids) for ids, _ in batch)
    input_ids = [ids + [padding_id] * (longest - len(ids)) for ids, _ in batch]
    labels = [targets + [IGNORED] * (longest - len(targets)) for _, targets in batch]
    return torch.tensor(input_ids), torch.tensor(labels)


def main(folder: Path) -> None:
    """Make tokenizer and model, save them in bfloat16, and note beside them what they were made with."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    texts = standard_library_texts()
    rows = read_rows("base_tasks_train.jsonl")
    tokenizer = train_tokenizer(texts + [row["message"] for row in rows])
    model = new_model(tokenizer)
    language = language_examples(tokenizer, texts)
    language_loss = train(model, batches_of(language, LANGUAGE_EPOCHS), "language")
    chat_loss = train(model, batches_of(chat_examples(tokenizer, rows), CHAT_EPOCHS), "chat")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "texts_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "language_tokens": sum(len(ids) for ids, _ in language),
        "language_loss": round(language_loss, 3),
        "chat_loss": round(chat_loss, 4),
    }
    (folder / "made_with.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "base")
