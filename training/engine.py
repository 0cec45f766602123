"""TRL's SFTTrainer, set up for rows that are tokenised, masked and ordered already.

Of TRL's own data handling nothing runs: no template, no mask, no truncation, no shuffle, no packing of rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from training import sharding
from training.head import learned_positions, loss_at_learned_positions, loss_of_fused_head
from training.micro_batches import MicroBatch
from training.optimizer import split_groups
from training.precision import Precision
from tuneline.contracts.artifacts import Plan
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import TrainingSpec

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""transformers' names of the schedules."""


class PreparedRows:
    """What the engines of all objectives share; each is a trainer of TRL's with this put before it."""

    computes_padding = True
    """Whether rows are padded to the longest of their micro-batch."""
    up_ratio: float | None = None
    """Rate of an adapter's up factors over the others'; set before the training begins."""

    def micro_batches_of(self, rows: Sequence[int], _: Sequence[int]) -> list[list[int]]:
        """Say which rows of a batch of the trainer are computed together: all of them."""
        return [list(rows)]

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer with the groups that an adapter needs."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]  # of the trainer that this is mixed into
        split_groups(optimizer, model if model is not None else self.model, self.up_ratio)  # type: ignore[attr-defined]
        return optimizer

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: TRL writes one with every checkpoint."""


class Engine(PreparedRows, SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """SFTTrainer whose batch is the whole optimizer step of a rank, which `StepCollator` has cut into micro-batches.

    Of the loss nothing but the loss is computed: TRL's entropy, accuracy and token count wait for the device in every
    micro-batch, and nobody reads them.
    """

    loss_is_scaled_for_ga = True
    """A sum over tokens, divided by their number in the whole step."""

    def micro_batches_of(self, rows: Sequence[int], row_tokens: Sequence[int]) -> list[list[int]]:
        """Say how a step of these rows, of which `row_tokens` has the tokens, is cut."""
        parts = self.data_collator.cut([row_tokens[row] for row in rows])
        return [[rows[place] for place in part] for part in parts]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[list[MicroBatch]], torch.Tensor]:
        """Fetch optimizer steps, and count their learned tokens over all ranks."""
        steps, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        learned = sum((learned_positions(micro_batch).sum() for step in steps for micro_batch in step), start=_zero())
        return steps, self.accelerator.gather(learned.to(device)).sum()

    @property
    def computes_padding(self) -> bool:  # type: ignore[override]
        """Whether rows are padded to the longest of their micro-batch."""
        return not self.data_collator.joined

    def floating_point_ops(self, _: Any) -> int:
        """Count nothing: the plan knows, and transformers counts what it takes for one batch."""
        return 0

    def training_step(
        self, model: Any, inputs: list[MicroBatch], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Accumulate the gradients of a step; ranks speak with each other in its last micro-batch only."""
        *others, last = self._as_many_on_all_ranks(inputs)
        loss = _zero(torch.float32).to(self.args.device)
        for micro_batch in others:
            with self.accelerator.no_sync(model):
                loss += super().training_step(model, micro_batch, num_items_in_batch)
        total: torch.Tensor = loss + super().training_step(model, last, num_items_in_batch)
        return total

    def _as_many_on_all_ranks(self, step: list[MicroBatch]) -> list[MicroBatch]:
        """Under FSDP each pass gathers weights from all ranks: fill up with a micro-batch that teaches nothing."""
        if not self.is_fsdp_enabled or self.accelerator.num_processes == 1:
            return step
        count = torch.tensor([len(step)], device=self.args.device)
        missing = int(self.accelerator.gather(count).max()) - len(step)
        filler = {**step[-1], "labels": torch.full_like(step[-1]["labels"], IGNORED_LABEL)}
        return [*[filler] * missing, *step]

    def compute_loss(
        self, model: Any, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum the cross entropy of the learned tokens and divide by their number in the whole optimizer step.

        Args:
            model: maps `input_ids` of shape (rows, tokens) to logits.
            inputs: the collated micro-batch; `labels` of shape (rows, tokens).
            return_outputs: never asked for here.
            num_items_in_batch: learned tokens of the optimizer step, over all ranks and micro-batches.
        """
        assert not return_outputs and num_items_in_batch is not None
        if self.args.device.type == "cpu":
            total = loss_at_learned_positions(model, self.model.get_output_embeddings(), inputs)
        else:
            total = loss_of_fused_head(model, inputs)
        return total * self.accelerator.num_processes / num_items_in_batch  # ranks are averaged, tokens are summed


def _zero(dtype: torch.dtype = torch.long) -> torch.Tensor:
    return torch.zeros((), dtype=dtype)


def step_arguments(shared: Mapping[str, Any], plan: Plan) -> Any:
    """Add to the arguments that all objectives share those of `Engine`, whose batch is a whole optimizer step."""
    rows = plan.micro_batch_rows * plan.accumulation_steps
    return sft_arguments({**shared, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1})


def sft_arguments(shared: Mapping[str, Any]) -> Any:
    """Add to the arguments that all objectives share those of TRL's SFTTrainer."""
    return SFTConfig(
        **shared,
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
