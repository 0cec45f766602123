"""Configs, data and machines that the planning tests share."""

from collections.abc import Mapping
from typing import Any

from tuneline.contracts.artifacts import LengthSummary, PreparedData
from tuneline.contracts.spec import RunSpec
from tuneline.planning.hardware import GIB, Machine

LAPTOP = Machine(cores=2, available_memory_bytes=16 * GIB, has_bfloat16=True)
LLAMA2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}
TINY = {
    "model_type": "llama",
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 3072,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def spec_of(base: str = "Qwen/Qwen3-8B", **sections: Mapping[str, Any]) -> RunSpec:
    """Build a config from its sections."""
    document: dict[str, Any] = {"name": "case", "data": {"train": "rows.jsonl"}, **sections}
    document["model"] = {"base": base, **document.get("model", {})}
    return RunSpec.model_validate(document)


def data_of(rows: int = 10_000, mean: int = 300, longest: int = 2048, learned_share: float = 0.5) -> PreparedData:
    """Describe prepared data of `rows` rows."""
    return PreparedData(
        kind="conversation",
        train_rows=rows,
        held_out_rows=100,
        retention_rows=0,
        train_tokens=rows * mean,
        learned_tokens=int(rows * mean * learned_share),
        packs=0,
        lengths=LengthSummary(p50=mean, p90=(mean + longest) // 2, p95=longest, p99=longest, max=longest),
        stop_token_ids=(1,),
        template_sha256="",
        receipt_sha256="",
    )
