"""What a layer keeps for its backward pass, measured.

torch 2.13, transformers 5.19, peft 0.21, `saved_tensors_hooks`, eight Qwen3-like layer shapes, SDPA, slope over tokens,
fitted to 1 %. Of a mixture, the MLP's width is that of the experts a token passes through: within 3 %, and 12 % too
little where the experts are adapted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tuneline.planning.model_shape import ModelShape


@dataclass(frozen=True)
class LayerBytes:
    """Bytes that a layer keeps per token, per unit of hidden, query, key-value and MLP width."""

    hidden: float
    attention: float
    kv: float
    mlp: float

    def of(self, shape: ModelShape) -> float:
        """Bytes per token and layer of a model."""
        return (
            self.hidden * shape.hidden_size
            + self.attention * shape.attention_size
            + self.kv * shape.kv_size
            + self.mlp * shape.mlp_size
        )


LAYER_BYTES: Mapping[str, LayerBytes] = MappingProxyType(
    {
        "lora autocast": LayerBytes(18.4, 10.5, 7.9, 8.0),
        "lora autocast dropout": LayerBytes(38.4, 14.5, 7.9, 12.0),
        "lora autocast attention": LayerBytes(14.3, 10.3, 7.9, 6.0),
        "lora autocast attention dropout": LayerBytes(26.3, 14.3, 7.9, 6.0),
        "lora": LayerBytes(16.7, 12.9, 11.7, 16.1),  # without autocast all is fp32
        "lora dropout": LayerBytes(48.7, 20.9, 11.7, 20.1),
        "dora autocast": LayerBytes(26.5, 14.2, 15.7, 16.0),
        "dora autocast dropout": LayerBytes(46.5, 18.2, 15.7, 20.0),
        "dora autocast attention": LayerBytes(18.4, 14.2, 15.8, 6.0),
        "dora autocast attention dropout": LayerBytes(30.3, 18.2, 15.8, 6.0),
        "dora": LayerBytes(32.8, 20.2, 27.5, 32.1),
        "dora dropout": LayerBytes(64.8, 28.2, 27.5, 36.1),
        "full autocast": LayerBytes(26.2, 10.1, 10.0, 8.0),
        "full": LayerBytes(24.2, 16.1, 16.0, 16.0),
    }
)
