"""Log-probabilities of given answers, and the held-out loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import torch
from transformers import PreTrainedModel

from evaluation.batching import OnDone, batches_by_length, halving, unheard
from tuneline.contracts.records import IGNORED_LABEL, PreparedItem

TOKEN_BUDGET = 4096
"""Tokens of one forward pass: with a vocabulary of 152k, 1.2 GB of bf16 logits when every token is learned."""

PREFERENCE = "preference_accuracy"


@dataclass(frozen=True)
class LabelledTokens:
    """A conversation's token ids, and labels of the same length that repeat the learned ones."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class AnswerLoss:
    """Negative log-likelihood of an answer, summed over its `tokens`, in nats."""

    nll: float
    tokens: int


def answer_losses(
    model: PreTrainedModel, rows: Sequence[LabelledTokens], on_done: OnDone = unheard
) -> list[AnswerLoss]:
    """Measure the loss of each row's learned tokens; `on_done` hears how many rows each batch finished."""
    return [AnswerLoss(-fsum(values), len(values)) for values in learned_logprobs(model, rows, on_done)]


def preferences(
    model: PreTrainedModel, items: Sequence[PreparedItem], chosen: Sequence[AnswerLoss]
) -> list[dict[str, float]]:
    """Say of each pair whether the model gives its better answer the higher probability, as a whole.

    Args:
        model: a causal language model from `load_model`.
        items: a suite's items.
        chosen: the losses of their better answers.

    Returns:
        `preference_accuracy` of each item, 0 or 1; nothing for an item that is no pair.
    """
    pairs = [
        LabelledTokens(item.rejected_input_ids, item.rejected_labels)
        for item in items
        if item.rejected_input_ids is not None and item.rejected_labels is not None
    ]
    if not pairs:
        return [{} for _ in items]
    assert len(pairs) == len(items), "a suite holds rows of one kind"
    rejected = answer_losses(model, pairs)
    return [{PREFERENCE: float(one.nll < other.nll)} for one, other in zip(chosen, rejected, strict=True)]


def learned_logprobs(
    model: PreTrainedModel, rows: Sequence[LabelledTokens], on_done: OnDone = unheard
) -> list[list[float]]:
    """Compute the natural log-probability of every learned token given those before it.

    Weights and activations have the model's dtype, as on the server; the log-softmax is float32.

    Returns:
        One list per row, in the rows' order, as long as the row has learned tokens.
    """
    logprobs: dict[int, list[float]] = {}
    for batch in batches_by_length([len(row.input_ids) for row in rows], TOKEN_BUDGET):
        computed = halving(lambda part: _batch_logprobs(model, [rows[index] for index in part]), batch)
        logprobs.update(zip(batch, computed, strict=True))
        on_done(len(batch))
    return [logprobs[index] for index in range(len(rows))]


@torch.inference_mode()
def _batch_logprobs(model: PreTrainedModel, rows: Sequence[LabelledTokens]) -> list[list[float]]:
    # Padded on the right, where causal attention never looks: no mask, so attention takes its fast path.
    input_ids = _padded([row.input_ids for row in rows], 0).to(model.device)
    targets = _padded([row.labels for row in rows], IGNORED_LABEL)[:, 1:].to(model.device)
    positions = (targets != IGNORED_LABEL).any(dim=0).nonzero().flatten()
    logits = _logits_at(model, input_ids, positions)
    return [_of_row(logits[row], targets[row, positions]) for row in range(len(rows))]


def _logits_at(model: PreTrainedModel, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return logits of shape (rows, positions, vocabulary), making only those where the model's head allows it."""
    if model._supports_logits_to_keep():
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False, logits_to_keep=positions).logits
        return logits
    logits = model(input_ids=input_ids, use_cache=False).logits
    return logits[:, positions]


def _of_row(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Row by row, so that the float32 copy of the logits is never larger than one row's."""
    learned = targets != IGNORED_LABEL
    negative = torch.nn.functional.cross_entropy(logits[learned].float(), targets[learned], reduction="none")
    return (-negative).tolist()


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
