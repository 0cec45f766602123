"""Weights on disk: an adapter's folder, a full model's folder, and the hash that names them."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from training.precision import Precision
from training.shards import SHARD_BYTES
from tuneline.contracts.artifacts import Record
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.store import write_whole

AS_TRAINED = "as_trained.json"


class AsTrained(Record):
    """What the merge must know of the training: the number format, and which modules computed with NF4 weights."""

    dtype: str
    nf4_modules: tuple[str, ...]


def save_trained(model: Any, state: Mapping[str, torch.Tensor] | None, base_name: str, folder: Path) -> None:
    """Write the trained weights in float32, as they were trained.

    Args:
        model: a PEFT model, or the base when every weight was trained.
        state: the model's gathered state when it was sharded.
        base_name: what the config calls the base; no path of this machine goes into an artifact.
        folder: written anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(model, PeftModel):
        adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / SAFETENSORS_WEIGHTS_NAME)
        config: LoraConfig = model.peft_config["default"]
        config.base_model_name_or_path = base_name
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_BYTES)


def save_as_trained(folder: Path, precision: Precision, nf4_modules: tuple[str, ...]) -> None:
    """Record beside the weights what the merge must know."""
    record = AsTrained(dtype=str(precision.stored).removeprefix("torch."), nf4_modules=nf4_modules)
    write_whole(folder / AS_TRAINED, record.model_dump_json(indent=1))


def weights_sha256(folder: Path) -> str:
    """Hash a folder of weights: the sha256 of the sorted lines `sha256  relative path` of its safetensors files."""
    files = sorted(folder.rglob("*.safetensors"))
    lines = sorted(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
