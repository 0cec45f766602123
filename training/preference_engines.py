"""TRL's preference trainers on rows that are tokenised, masked and ordered already."""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from training.engine import PreparedRows
from tuneline.contracts.records import IGNORED_LABEL

CERTAIN = -1e-6
"""Mean log-probability beyond which an answer counts as certain: its odds would be infinite."""


class ReferenceEngine(PreparedRows):
    """What the engines share that hold the model to a reference: the base with its adapter off, or a frozen copy."""

    model: Any

    def __init__(self, **options: Any) -> None:
        """Drop the adapter that TRL copies from the fresh one as a reference: it is the base, and would be saved."""
        super().__init__(**options)
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Leave the rows as they are: TRL would render, tokenise and pair them."""
        return dataset


class PairEngine(ReferenceEngine, DPOTrainer):  # type: ignore[misc]  # trl is untyped here
    """Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""


class UnpairedEngine(ReferenceEngine, KTOTrainer):  # type: ignore[misc]  # trl is untyped here
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306).

    TRL estimates the divergence from the reference anew in every micro-batch, so that its size would change the
    weights. Here all rows of an optimizer step give one estimate, at the price of the same forward passes.
    """

    def __init__(self, **options: Any) -> None:
        """Set the trainer up under the loss without divergence: with it TRL refuses micro-batches of one row."""
        assert options["args"].loss_type == "apo_zero_unpaired"
        super().__init__(**options)
        self.loss_type, self.calculate_KL = "kto", True
        self.precompute_ref_logps = True  # read from the batch, where `get_batch_samples` puts them
        self._divergence = torch.zeros(1)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Score a step's micro-batches with the reference, and its mismatched answers with model and reference."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # An evaluation leaves the model in eval mode, in which bitsandbytes repacks NF4 layers on some CPUs for good.
        self.model.train()
        divergences = [torch.zeros(0, device=device)]
        for batch in batches:
            batch["ref_logps"], reference = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            batch["ref_KL_logps"] = torch.zeros(1, device=device)
            divergences.append(super()._compute_kl_logps(self.model, batch) - reference)
        self._divergence = torch.cat(divergences)
        return batches, items

    def _compute_kl_logps(self, *_: Any) -> torch.Tensor:
        """Return the step's divergences, one a row, for TRL to average over rows and ranks."""
        return self._divergence


class OddsRatioEngine(PreparedRows, SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """Odds ratio preference optimisation (Hong et al. 2024, https://arxiv.org/abs/2403.07691).

    TRL 1.16 has it among its experiments only, where it tokenises and cuts rows itself and keeps all logits; so this is
    the loss alone, on the head of TRL's SFTTrainer.
    """

    loss_is_scaled_for_ga = False
    """A mean over rows: transformers divides it by the number of micro-batches."""

    def __init__(self, odds_weight: float, **options: Any) -> None:
        """Weigh the odds ratio with `odds_weight`, lambda in the paper."""
        super().__init__(**options)
        self._odds_weight = odds_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Average equation 6 of the paper over the pairs of a micro-batch from `PairCollator`."""
        assert not return_outputs
        learned = inputs.pop("completion_mask")
        labels = inputs["input_ids"].masked_fill(learned == 0, IGNORED_LABEL)
        log_probs = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs
        mean = log_probs.float().sum(1) / learned[:, 1:].sum(1)
        chosen, rejected = mean.chunk(2)
        log_odds_ratio = _log_odds(chosen) - _log_odds(rejected)
        self._note(chosen.detach(), rejected.detach())
        return (-chosen - self._odds_weight * functional.logsigmoid(log_odds_ratio)).mean()

    def _note(self, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        """Log what TRL's preference trainers do; here a reward is the weighted mean log-probability."""
        figures = {
            "rewards/chosen": self._odds_weight * chosen,
            "rewards/rejected": self._odds_weight * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": self._odds_weight * (chosen - rejected),
        }
        for name, values in figures.items():
            self._metrics["train"][name].append(self.accelerator.gather(values).mean().item())


def _log_odds(mean_log_probs: torch.Tensor) -> torch.Tensor:
    """Compute log(p / (1 - p)) of p = exp(mean log-probability)."""
    certain = mean_log_probs.clamp(max=CERTAIN)
    return certain - torch.log(-torch.expm1(certain))
