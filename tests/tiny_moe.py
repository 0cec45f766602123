"""A random mixture of experts of the size of `tiny_model`'s Llama, in files as the Hub has them: a matrix an expert."""

from pathlib import Path

import torch
from tiny_model import make_tiny_base
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def make_tiny_moe(folder: Path, *, dtype: str = "float32", fused_files: bool = False) -> Path:
    """Write a two-layer Qwen3-MoE with four experts, of which a token passes through two."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(make_tiny_base(folder / "tokenizer"))
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[],
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3MoeForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base", save_original_format=not fused_files)
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"
