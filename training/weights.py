"""Weights on disk: an adapter's folder, a full model's folder, and the hash that names them."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import ParamWrapper
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from training import adapters, pissa
from training.precision import Precision
from training.shards import SHARD_BYTES
from tuneline.contracts.artifacts import Record
from tuneline.contracts.fingerprint import sha256_file
from tuneline.contracts.store import write_whole

AS_TRAINED = "as_trained.json"


class FusedPair(Record):
    """A pair of factors that adapts a fused weight: which one, which its factors' names do not say."""

    layer: str
    """Name of the adapter's layer; ends in `base_layer` where it is inside another of the same module."""
    parameter: str
    """Full name of the fused weight."""
    experts: int
    transposed: bool
    """Whether the weight has the shape (experts, inputs, outputs) rather than (experts, outputs, inputs)."""


class AsTrained(Record):
    """What the merge must know of the training beside its weights."""

    dtype: str
    nf4_modules: tuple[str, ...]
    """Modules that computed with NF4 weights."""
    remainder_dtype: str | None = None
    """Number format of what PiSSA left of the base; None without PiSSA."""
    fused_pairs: tuple[FusedPair, ...] = ()


def save_trained(
    model: Any, state: Mapping[str, torch.Tensor] | None, base_name: str, folder: Path, start: Path | None = None
) -> None:
    """Write the trained weights in float32, as they were trained.

    Args:
        model: a PEFT model, or the base when every weight was trained.
        state: the model's gathered state when it was sharded.
        base_name: what the config calls the base; no path of this machine goes into an artifact.
        folder: written anew.
        start: file of PiSSA's first factors.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(model, PeftModel):
        adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        config: LoraConfig = model.peft_config["default"]
        if start is not None:
            adapter, config = pissa.as_plain_lora(adapter, load_file(start), config)
        save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, folder / SAFETENSORS_WEIGHTS_NAME)
        config.base_model_name_or_path = base_name
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_BYTES)


def save_as_trained(
    folder: Path, model: Any, precision: Precision, nf4_modules: tuple[str, ...], *, apart: bool
) -> None:
    """Record beside the weights what the merge must know.

    Args:
        folder: of the artifact.
        model: as trained.
        precision: number formats of the training.
        nf4_modules: modules that computed with NF4 weights.
        apart: whether PiSSA took the base apart.
    """
    record = AsTrained(
        dtype=str(precision.stored).removeprefix("torch."),
        nf4_modules=nf4_modules,
        remainder_dtype=str(precision.frozen).removeprefix("torch.") if apart else None,
        fused_pairs=tuple(_fused_pairs(model)) if isinstance(model, PeftModel) else (),
    )
    write_whole(folder / AS_TRAINED, record.model_dump_json(indent=1))


def _fused_pairs(model: Any) -> Iterator[FusedPair]:
    for name, layer in adapters.lora_layers(model):
        if isinstance(layer, ParamWrapper):
            transposed = bool(getattr(layer.get_base_layer(), "is_transposed", False))
            parameter = adapters.base_name(name, layer)
            yield FusedPair(layer=name, parameter=parameter, experts=layer.num_experts, transposed=transposed)


def weights_sha256(folder: Path) -> str:
    """Hash a folder of weights: the sha256 of the sorted lines `sha256  relative path` of its safetensors files."""
    files = sorted(folder.rglob("*.safetensors"))
    lines = sorted(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
