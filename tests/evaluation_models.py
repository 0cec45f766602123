"""A candidate that has learned the tiny held-out answers by heart, and plain references to test against."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from serving_images import merged_model
from tiny_model import put_record
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from tuneline.contracts.artifacts import MergedModel, PreparedData
from tuneline.contracts.records import PreparedItem
from tuneline.contracts.store import read_record


def read_items_of(folder: Path) -> list[PreparedItem]:
    """Read a prepared suite."""
    return [PreparedItem.model_validate(row) for row in Dataset.from_file(str(folder))]


def make_merged(folder: Path, base: Path, prepared: Path) -> Path:
    """Train every weight on the held-out answers until they are known, and write the artifact of merge."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    items = read_items_of(prepared / PreparedData.HELD_OUT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        torch.stack([_loss(model, item) for item in items]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / MergedModel.MODEL)
    AutoTokenizer.from_pretrained(prepared / PreparedData.TOKENIZER).save_pretrained(folder / MergedModel.MODEL)
    data = read_record(prepared, PreparedData)
    record = merged_model(data.stop_token_ids).model_copy(update={"template_sha256": data.template_sha256})
    return put_record(folder, "merge", record)


@torch.inference_mode()
def plain_answer(
    model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]
) -> tuple[int, ...]:
    """Decode greedily in the plainest way: alone, no cache, no padding, the whole sequence again for each token."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return tuple(ids[len(prompt) :])


@torch.inference_mode()
def plain_logprobs(model: PreTrainedModel, input_ids: Sequence[int], positions: Sequence[int]) -> list[float]:
    """Log-probability of the tokens at `positions`, from one forward pass over the whole sequence."""
    logprobs = model(torch.tensor([list(input_ids)])).logits[0].float().log_softmax(-1)
    return [float(logprobs[position - 1, input_ids[position]]) for position in positions]


def _loss(model: LlamaForCausalLM, item: PreparedItem) -> torch.Tensor:
    loss: torch.Tensor = model(torch.tensor([item.input_ids]), labels=torch.tensor([item.labels])).loss
    return loss
