"""FSDP2: weights, gradients and moments cut up over the ranks, by accelerate and torch's `fully_shard`."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from training.precision import Precision

ARGUMENTS = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "reshard_after_forward": True, "state_dict_type": "FULL_STATE_DICT"},
}
"""For transformers. Each decoder layer is gathered alone (the model's `_no_split_modules`); checkpoints are whole, so
that the number of ranks may change between two attempts."""


def allow_on_cpu() -> None:
    """Have accelerate shard over gloo what it shards over NCCL; called before a trainer makes its accelerator.

    accelerate 1.15 looks at the plugin for FSDP only where ranks have accelerators, and trains with DDP elsewhere
    without a word. What it then runs (`fully_shard`, gathered states) knows no kind of device.
    """
    state = PartialState()
    if state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def reduce_in_float32(trainer: Any, precision: Precision) -> None:
    """Gather weights in the format of the products, and add up gradients in float32, as DDP does.

    accelerate 1.15 would add them up in bfloat16: with 8 significant bits the sum over many ranks loses small ones.

    Args:
        trainer: made, not yet training.
        precision: number formats.
    """
    assert trainer.accelerator.is_fsdp2
    trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=precision.autocast, reduce_dtype=torch.float32
    )
