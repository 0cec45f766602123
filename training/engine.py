"""TRL's SFTTrainer, set up for rows that are tokenised, masked and ordered already.

Of TRL's own data handling nothing runs: no template, no mask, no truncation, no shuffle, no packing of rows.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from trl import SFTConfig, SFTTrainer

from training import sharding
from training.optimizer import split_groups
from training.precision import Precision
from tuneline.contracts.artifacts import Plan
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import TrainingSpec

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""transformers' names of the schedules."""


class PreparedRows:
    """What the engines of all objectives share; each is a trainer of TRL's with this put before it."""

    up_ratio: float | None = None
    """Rate of an adapter's up factors over the others'; set before the training begins."""

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer with the groups that an adapter needs."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]  # of the trainer that this is mixed into
        split_groups(optimizer, model if model is not None else self.model, self.up_ratio)  # type: ignore[attr-defined]
        return optimizer

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: TRL writes one with every checkpoint."""


class Engine(PreparedRows, SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """SFTTrainer that on a CPU scores the learned positions only.

    TRL's fused head pays on GPUs. On a CPU it projects every position and computes entropy and accuracy beside the
    loss: a step of a 3 M parameter Llama takes 1.5 times as long as with the plain cross entropy below.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum the cross entropy of the learned tokens and divide by their number in the whole optimizer step.

        Args:
            model: maps `input_ids` of shape (rows, tokens) to logits.
            inputs: the collated micro-batch; `labels` of shape (rows, tokens).
            return_outputs: never asked for here.
            num_items_in_batch: learned tokens of the optimizer step, over all ranks and micro-batches.
        """
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs and num_items_in_batch is not None
        targets = inputs.pop("labels")[:, 1:]
        positions = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
        targets = targets[:, positions]
        learned = targets != IGNORED_LABEL
        loss = functional.cross_entropy(logits[learned].float(), targets[learned], reduction="sum")
        return loss * self.accelerator.num_processes / num_items_in_batch  # ranks are averaged, tokens are summed


def engine_arguments(shared: Mapping[str, Any], plan: Plan) -> Any:
    """Add to the arguments that all objectives share those of `Engine`."""
    return SFTConfig(
        **shared,
        padding_free=plan.packing,
        max_length=None,
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def shared_arguments(
    spec: TrainingSpec, plan: Plan, precision: Precision, checkpoints: Path, *, processes: int = 1
) -> dict[str, Any]:
    """Translate config and plan for TRL: what the trainers of all objectives take.

    Args:
        spec: section `training`.
        plan: batch and steps.
        precision: number formats.
        checkpoints: folder of the checkpoints.
        processes: ranks that train together.
    """
    shards = sharding.ARGUMENTS if spec.fsdp and processes > 1 else {}
    on_cpu = precision.device == "cpu"
    return dict(
        output_dir=str(checkpoints),
        max_steps=plan.optimizer_steps,
        per_device_train_batch_size=plan.micro_batch_rows,
        gradient_accumulation_steps=plan.accumulation_steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=SCHEDULES[spec.schedule],
        # Counted here: transformers reads a value below 1 as a share, so that a share of 1.0 would be one step.
        warmup_steps=math.ceil(spec.warmup_share * plan.optimizer_steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        bf16=precision.autocast is torch.bfloat16,
        fp16=precision.autocast is torch.float16,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and processes > 1 else None,
        gradient_checkpointing=plan.activation_checkpointing,
        activation_offloading=plan.activation_offloading and not on_cpu,  # a CPU has no other memory to use
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        logging_steps=spec.log_every_optimizer_steps,
        logging_first_step=True,
        # Off: a mixture's balance term is counted by micro-batch, so that how a step is cut would change the weights,
        # and the loss would be no cross entropy. Adapters leave the router as it is.
        router_aux_loss_coef=0.0,
        logging_nan_inf_filter=False,  # the filter would report the mean of earlier losses in place of a NaN
        save_steps=spec.checkpoint_every_optimizer_steps,
        disable_tqdm=True,
        report_to="none",
        seed=spec.seed,
        **shards,
    )
