"""Proof that the merged weights answer as the trained model does, both loaded from disk and asked the same.

Both models compute in float32 (weights in bfloat16 are widened, which changes no value), so that what is measured is
the weights and not the noise of two orders of rounding. On a GPU too small for that, both compute in the stored dtype.
On a toy Llama the merge by our rule has a mean KL of 1e-6 and 99.9 % of the top tokens; under a QLoRA adapter, the base
as it was before NF4 has 4e-3 and 92 to 95 %.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from training import nf4, pissa
from training.base_model import load_base
from training.errors import MergeFailed
from training.precision import Precision, training_device
from training.recipe import Recipe
from training.scoring import Sample, answer_logits, answer_nll, log_probabilities, read_samples
from training.weights import weights_sha256
from tuneline.contracts.artifacts import Adapter, Certificate
from tuneline.contracts.jobs import Job, ProgressEvent, Reporter

MAX_MEAN_KL = 1e-4
"""Nats per token: a hundred times the rounding to bfloat16, a fortieth of the wrong base under a QLoRA adapter."""
MIN_TOP1_AGREEMENT = 0.995
"""Share of positions with the same most likely token; one near-tie is granted however few positions there are."""
MAX_NLL_CHANGE = 0.005
"""Relative change of the loss on the given answers."""


@dataclass(frozen=True)
class Agreement:
    """How far two models agree on the same positions."""

    tokens: int
    mean_kl: float
    """KL(trained || merged), nats per token."""
    p99_kl: float
    top1_agreement: float

    @property
    def min_top1_agreement(self) -> float:
        """The limit at this number of positions."""
        return min(MIN_TOP1_AGREEMENT, 1 - 1 / self.tokens)


def certify(job: Job, recipe: Recipe, merged: Path, tensors_changed: int, report: Reporter) -> Certificate:
    """Score the trained and the merged model on held-out answers and compare.

    Raises:
        MergeFailed: when a figure is beyond its limit.
    """
    samples = read_samples(job.inputs["prepared"])
    precision = scoring_precision(recipe)
    method = "full" if recipe.updates is None else "qlora" if recipe.nf4_weights else "lora"
    total = len(samples) * (3 if method == "qlora" else 2)
    scorer = _Scorer(samples, total, report)
    trained = scorer.scores(lambda: load_trained(job, recipe, method, precision))
    merged_scores = scorer.scores(lambda: _load_plain(merged, precision))
    other = scorer.scores(lambda: load_trained(job, recipe, "lora", precision)) if method == "qlora" else None
    agreement = compare(trained, merged_scores)
    trained_nll, merged_nll = answer_nll(trained, samples), answer_nll(merged_scores, samples)
    check_limits(agreement, trained_nll, merged_nll)
    return Certificate(
        base=_base_used(method),
        samples=len(samples),
        tokens=agreement.tokens,
        mean_kl=agreement.mean_kl,
        p99_kl=agreement.p99_kl,
        top1_agreement=agreement.top1_agreement,
        trained_nll=trained_nll,
        merged_nll=merged_nll,
        original_base_nll=answer_nll(other, samples) if other else None,
        pairs_used=recipe.pairs,
        tensors_changed=tensors_changed,
        tensors_total=len(recipe.places),
        weights_sha256=weights_sha256(merged),
        limits={
            "mean_kl": MAX_MEAN_KL,
            "top1_agreement": agreement.min_top1_agreement,
            "merged_nll": MAX_NLL_CHANGE,
        },
    )


def compare(trained: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]) -> Agreement:
    """Compare logits at the same positions.

    Args:
        trained: for each sample, shape (answer tokens, vocabulary).
        merged: likewise.
    """
    kl = torch.cat([_kl(p, q) for p, q in zip(trained, merged, strict=True)])
    same = torch.cat([p.argmax(1) == q.argmax(1) for p, q in zip(trained, merged, strict=True)])
    return Agreement(len(kl), float(kl.mean()), float(kl.quantile(0.99)), float(same.double().mean()))


def check_limits(agreement: Agreement, trained_nll: float, merged_nll: float) -> None:
    """Hold the figures against the limits.

    Raises:
        MergeFailed: naming each figure that is off.
    """
    change = abs(merged_nll - trained_nll) / max(trained_nll, 1e-9)
    off = []
    if not agreement.mean_kl <= MAX_MEAN_KL:
        off.append(f"mean KL {agreement.mean_kl:.3g} nats per token, limit {MAX_MEAN_KL:.0e}")
    if not agreement.top1_agreement >= agreement.min_top1_agreement:
        share, limit = agreement.top1_agreement, agreement.min_top1_agreement
        off.append(f"same top token at {share:.2%} of positions, limit {limit:.2%}")
    if not (isfinite(change) and change <= MAX_NLL_CHANGE):
        off.append(f"loss {trained_nll:.4f} became {merged_nll:.4f} ({change:.2%}), limit {MAX_NLL_CHANGE:.1%}")
    if off:
        raise MergeFailed("the merged model is not the trained one: " + "; ".join(off))


def scoring_precision(recipe: Recipe) -> Precision:
    """Compute in float32, or in the stored dtype where float32 weights would fill more than half of the GPU."""
    device = training_device()
    if device == "cuda":
        float32_bytes = 4 * sum(torch.Size(place.shape).numel() for place in recipe.places.values())
        if float32_bytes > torch.cuda.get_device_properties(0).total_memory / 2:
            return Precision(device, recipe.dtype, frozen=recipe.dtype, autocast=recipe.dtype)
    return Precision(device, recipe.dtype, frozen=torch.float32, autocast=None)


def load_trained(job: Job, recipe: Recipe, method: str, precision: Precision) -> Any:
    """Load the model as it was trained: base (in NF4 for `qlora`) and adapter side by side, or the float32 weights."""
    if recipe.trained is not None:
        return _load_plain(recipe.trained, precision)
    base = load_base(recipe.base, method, precision, "sdpa")
    model = PeftModel.from_pretrained(base, job.inputs["adapter"] / Adapter.WEIGHTS)
    if recipe.remainder_dtype is not None:
        pissa.restore(model, recipe.remainder_dtype)
    model.eval()
    nf4.keep_unpacked(model)
    return model.to(precision.device)


def _load_plain(folder: Path, precision: Precision) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision.frozen, local_files_only=True)
    return model.eval().to(precision.device)


def _base_used(method: str) -> Literal["original", "dequantised", "none"]:
    match method:
        case "lora":
            return "original"
        case "qlora":
            return "dequantised"
    return "none"


def _kl(trained: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    p, q = log_probabilities(trained), log_probabilities(merged)
    return (p.exp() * (p - q)).sum(dim=1).clamp(min=0.0)


class _Scorer:
    """Scores one model after another, with one of them in memory at a time."""

    def __init__(self, samples: Sequence[Sample], total: int, report: Reporter) -> None:
        self._samples = samples
        self._total = total
        self._report = report
        self._done = 0

    def scores(self, load: Callable[[], Any]) -> list[torch.Tensor]:
        """Load a model, score every sample, and let the model go."""
        model = load()
        logits = [self._score(model, sample) for sample in self._samples]
        del model
        gc.collect()
        return logits

    def _score(self, model: Any, sample: Sample) -> torch.Tensor:
        logits = answer_logits(model, sample)
        self._done += 1
        if self._done % 16 == 0 or self._done == self._total:
            self._report(ProgressEvent(done=self._done, planned=self._total, unit="samples", note="certificate"))
        return logits
