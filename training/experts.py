"""Fused experts on disk: which expert's matrix, in the base's files, is which part of a fused weight in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from training.errors import MergeFailed
from training.shards import TensorPlace
from training.updates import FusedUpdate, LowRankUpdate, Update


def in_files(fused: Mapping[str, FusedUpdate], base: Path, places: Mapping[str, TensorPlace]) -> dict[str, Update]:
    """Write the updates of fused weights as updates of the tensors that the base's files have.

    Args:
        fused: updates by the parameter's name in memory.
        base: folder of the base.
        places: its tensors.

    Returns:
        Updates by the tensor's name; each expert's part of a pair stands in one of them and in no second.

    Raises:
        MergeFailed: when the parts are not each expert's rows, every one once.
    """
    found: dict[str, Update] = {name: update for name, update in fused.items() if name in places}
    apart = fused.keys() - found.keys()
    if apart:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
        for name in sorted(apart):
            found |= _parts(name, fused[name], skeleton)
    return found


def _parts(name: str, update: FusedUpdate, skeleton: Any) -> dict[str, LowRankUpdate]:
    """Ask transformers how it would save the weight, with each row's number in the place of the row."""
    experts, outputs = update.pair.experts, update.up.shape[0]
    if update.pair.transposed:
        raise MergeFailed(f"{name} is stored by experts and transposed in memory: no such layout is known here")
    numbers = torch.arange(experts * outputs).reshape(experts, outputs, 1)
    saved = revert_weight_conversion(skeleton, {name: numbers})
    rows = {part: codes.flatten() for part, codes in saved.items()}
    if not torch.equal(torch.cat(list(rows.values())).sort().values, numbers.flatten()):
        raise MergeFailed(
            f"{name}: transformers saves its rows as {', '.join(sorted(rows)[:5])}, not each of them once"
        )
    down = update.down.reshape(experts, -1, update.down.shape[1])
    up = update.up.reshape(outputs, -1, experts)
    parts = {}
    for part, codes in rows.items():
        (expert,) = (codes // outputs).unique().tolist()
        parts[part] = LowRankUpdate(down[expert], up[codes % outputs, :, expert], update.config)
    return parts
