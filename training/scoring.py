"""What a model thinks of held-out answers: the logits at every position of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tuneline.contracts.artifacts import PreparedData

MIN_SAMPLES = 64
"""Samples below which agreement is not claimed, unless the held-out set is smaller."""
MIN_TOKENS = 2048
"""Answer tokens that are scored at least: at 1 disagreement in 2048, the top-1 limit leaves room for 10."""
MAX_TOKENS = 8192
"""Answer tokens that are scored at most: their logits take 5 GB at a vocabulary of 152,000."""


@dataclass(frozen=True)
class Sample:
    """A conversation, and where its answer is predicted."""

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Indices whose logits predict a token of the answer."""

    @property
    def answer_ids(self) -> list[int]:
        """Tokens of the answer at these positions."""
        return [self.input_ids[position + 1] for position in self.positions]


def read_samples(prepared: Path) -> list[Sample]:
    """Take the first held-out conversations: at least `MIN_SAMPLES` and `MIN_TOKENS`, or all there are."""
    rows = Dataset.from_file(str(prepared / PreparedData.HELD_OUT)).select_columns(["prompt_ids", "answer_ids"])
    samples: list[Sample] = []
    tokens = 0
    for row in rows:
        if len(samples) >= MIN_SAMPLES and tokens >= MIN_TOKENS:
            break
        samples.append(_sample(row["prompt_ids"], row["answer_ids"]))
        tokens += len(samples[-1].positions)
    longest = max(1, MAX_TOKENS // len(samples))
    return [Sample(sample.input_ids, sample.positions[:longest]) for sample in samples]


def _sample(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Sample:
    first = len(prompt_ids) - 1
    return Sample((*prompt_ids, *answer_ids), tuple(range(first, first + len(answer_ids))))


@torch.inference_mode()
def answer_logits(model: Any, sample: Sample) -> torch.Tensor:
    """Score one sample, alone so that no padding plays a part.

    Returns:
        float32 on the CPU, shape (answer tokens, vocabulary).
    """
    ids = torch.tensor([sample.input_ids], device=model.device)
    positions = torch.tensor(sample.positions, device=model.device)
    logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits[0]
    on_cpu: torch.Tensor = logits.float().cpu()
    return on_cpu


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Normalise in float64: in float32 the sums of 100,000 terms are off by more than the differences to be seen."""
    normalised: torch.Tensor = torch.log_softmax(logits.double(), dim=-1)
    return normalised


def answer_nll(logits: Sequence[torch.Tensor], samples: Sequence[Sample]) -> float:
    """Average the negative log-likelihood of the given answers, in nats per token.

    Args:
        logits: for each sample, shape (answer tokens, vocabulary).
        samples: the samples.
    """
    chosen = [
        log_probabilities(scores).gather(1, torch.tensor(sample.answer_ids)[:, None])
        for scores, sample in zip(logits, samples, strict=True)
    ]
    return -float(torch.cat(chosen).mean())
