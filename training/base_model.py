"""The base model in memory: loaded from files with an explicit dtype, and checked after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Params4bit
from transformers import AutoModelForCausalLM

from training import nf4
from training.precision import Precision
from tuneline.contracts.errors import UserError


def load_base(folder: Path, method: str, precision: Precision, attention: str, *, sharded: bool = False) -> Any:
    """Load the base for training.

    Args:
        folder: a Hugging Face model folder.
        method: `lora`, `qlora` (NF4, all linear modules but the head) or `full` (float32 master weights).
        precision: number formats.
        attention: attention kernel.
        sharded: whether FSDP will shard the weights.

    Returns:
        The model in training mode; frozen unless the method is `full`.

    Raises:
        UserError: when the files lack a weight of the model or hold it in another shape: they are another model's.
    """
    options: dict[str, Any] = {"dtype": precision.frozen, "attn_implementation": attention, "local_files_only": True}
    if method == "qlora":
        # NF4 rounds what it is given, and gives it back in that dtype: it must be the dtype of the merged weights.
        options["dtype"] = precision.stored
        storage = precision.stored if sharded else torch.uint8
        options["quantization_config"] = nf4.quantization_config(precision.compute, storage)
        options["device_map"] = {"": torch.cuda.current_device() if precision.device == "cuda" else "cpu"}
    if method == "full":
        options["dtype"] = torch.float32
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    _check_loaded(folder, found)
    model.config.use_cache = False
    model.requires_grad_(method == "full")
    if method == "qlora" and precision.frozen != precision.stored:
        _widen(model, precision.frozen)
    _assert_dtype(model, torch.float32 if method == "full" else precision.frozen)
    return model.train()


def _widen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Hold what NF4 left alone (embeddings, norms, head) in a wider format: the same values, quicker on this device."""
    for parameter in _plain(model):
        parameter.data = parameter.data.to(dtype)


def _plain(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the floating-point weights that are what they seem: packed NF4 that FSDP will shard has their dtype, too."""
    weights = [parameter for parameter in model.parameters() if not isinstance(parameter, Params4bit)]
    return [parameter for parameter in weights if parameter.is_floating_point()]


def _check_loaded(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers and a line in the log."""
    wrong = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    wrong += [f"{name} is {tuple(theirs)} and not {tuple(ours)}" for name, theirs, ours in found["mismatched_keys"]]
    if wrong:
        what = f"the weights are not those of its config.json: {'; '.join(wrong[:3])} ({len(wrong)} tensors in all)"
        raise UserError.of(what, f"model.base {folder}", "put config.json and *.safetensors of the same model together")


def _assert_dtype(model: torch.nn.Module, dtype: torch.dtype) -> None:
    # Some architectures keep a few small tensors in float32 on purpose: what matters is that the bulk is not.
    floating = _plain(model)
    bulk = sum(parameter.numel() for parameter in floating if parameter.dtype == dtype)
    assert 2 * bulk > sum(parameter.numel() for parameter in floating), f"the base was not loaded as {dtype}"
