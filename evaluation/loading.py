"""A model on the device that evaluates it."""

import gc
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tuneline.contracts.spec import RunSpec


def load_model(folder: Path, dtype: str) -> PreTrainedModel:
    """Load a Hugging Face model folder for evaluation, on the GPUs when there are any.

    Args:
        folder: config and weights.
        dtype: number format of weights and activations, as `bfloat16`.
    """
    gc.collect()  # the model before this one: its modules refer to each other in cycles
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        device_map="auto" if torch.cuda.is_available() else None,
        local_files_only=True,
    )
    # `generate` fills what its caller leaves open from here, and a repetition penalty would not be greedy.
    model.generation_config = GenerationConfig()
    return model.eval()


def served_dtype(spec: RunSpec) -> str:
    """Name the number format in which the model is served, and so evaluated.

    On a CPU with AVX512-BF16, bfloat16 is also the faster one: 1.5 times float32 on the 3M-parameter model.
    """
    return spec.model.dtype if spec.serving.dtype == "auto" else spec.serving.dtype


def context_tokens(folder: Path, spec: RunSpec) -> int:
    """Return the most tokens that prompt and answer may have together, as the server counts them."""
    if spec.serving.max_model_len is not None:
        return spec.serving.max_model_len
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    return int(getattr(config, "max_position_embeddings", sys.maxsize))  # a state-space model has no longest sequence
