"""What a plan needs of a model: its widths, its linear modules and its parameter count; never its weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tuneline.contracts.errors import UserError
from tuneline.contracts.targets import Adaptable
from tuneline.planning.analytic import TensorShapes, check_weights, positive, tensors_of_config
from tuneline.planning.modules import FusedWeight, LinearModule, fused_of, linears_of

OUTSIDE_LAYERS = ("lm_head", "model.embed_tokens")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer; `linears` are the modules inside its layers, so never the output head."""

    name: str
    layers: int
    hidden_size: int
    attention_size: int
    """Heads times head dimension: the width of the queries."""
    kv_size: int
    """Key-value heads times head dimension."""
    mlp_size: int
    """Of all experts that a token passes through, where there are several."""
    heads: int
    vocab_size: int
    context_tokens: int
    """Longest sequence that the model has positions for."""
    parameters: int
    linears: tuple[LinearModule, ...]
    fused: tuple[FusedWeight, ...] = ()
    experts_per_token: int = 0
    only_attends: bool = True
    """Whether tokens hear of each other by attention alone; a recurrent layer carries on from one text to the next."""

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear modules: what NF4 quantises."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def fused_parameters(self) -> int:
        """Weights of all experts, which bitsandbytes passes by."""
        return sum(weight.parameters for weight in self.fused)

    @property
    def matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: the linear modules, its experts and the output head."""
        active = sum(weight.parameters * self.experts_per_token // weight.experts for weight in self.fused)
        return self.linear_parameters + active + self.hidden_size * self.vocab_size

    @property
    def adaptable(self) -> Adaptable:
        """Full names of what can be adapted, and of what cannot."""
        linears = tuple(path for linear in self.linears for path in linear.paths)
        return Adaptable(linears, OUTSIDE_LAYERS, tuple(weight.path for weight in self.fused))

    @property
    def linear_names(self) -> tuple[str, ...]:
        """Names of the linear modules, each once."""
        return tuple(dict.fromkeys(linear.name for linear in self.linears))


def shape_of_folder(folder: Path) -> ModelShape:
    """Read the shape of a model in Hugging Face layout: `config.json`, and the headers of its safetensors files.

    Raises:
        UserError: no readable config, damaged weights, or an architecture that is not planned.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError.of("no such file", str(path), "name a folder in Hugging Face layout") from None
    except ValueError as error:
        raise UserError.of(f"not JSON: {error}", str(path), "download the model again") from None
    return shape_from_config(str(folder), config, _tensors_of_folder(folder) or None)


def shape_from_config(name: str, config: Mapping[str, object], tensors: TensorShapes | None = None) -> ModelShape:
    """Build a shape from the content of a `config.json`.

    Args:
        name: folder or Hub name, for messages.
        config: the parsed file; a multi-modal one is read at its `text_config`.
        tensors: every weight with its shape; derived from the config when absent.

    Raises:
        UserError: a key is missing, the model is quantised already or of an unknown type, or the weights are not those
            that the config describes.
    """
    multi_modal = "text_config" in config
    config = _text_config(name, config, counted=tensors is not None)
    hidden_size, heads = positive(name, config, "hidden_size"), positive(name, config, "num_attention_heads")
    kv_heads = positive(name, config, "num_key_value_heads", default=heads)
    head_dim = positive(name, config, "head_dim", default=hidden_size // heads)
    if tensors is None:
        tensors = tensors_of_config(name, config)
    elif not multi_modal:
        check_weights(name, config, tensors)
    if config.get("tie_word_embeddings"):
        tensors = {key: shape for key, shape in tensors.items() if not key.endswith("lm_head.weight")}
    return ModelShape(
        name=name,
        layers=positive(name, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        attention_size=heads * head_dim,
        kv_size=kv_heads * head_dim,
        mlp_size=_mlp_size(name, config),
        heads=heads,
        vocab_size=positive(name, config, "vocab_size"),
        context_tokens=positive(name, config, "max_position_embeddings"),
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        linears=linears_of(tensors),
        fused=fused_of(tensors),
        experts_per_token=positive(name, config, "num_experts_per_tok", default=1),
        only_attends=_only_attends(config),
    )


def _tensors_of_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:  # reads the header; tensors stay on disk
                tensors |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError.of(f"damaged weights: {error}", str(path), "download the file again") from None
    return tensors


def _text_config(name: str, config: Mapping[str, object], *, counted: bool) -> Mapping[str, object]:
    inner = config.get("text_config")
    where = f"model.base {name}"
    quantised = config.get("quantization_config")
    config = inner if isinstance(inner, Mapping) else config
    if any(config.get(key) for key in EXPERT_KEYS) and not counted:
        what = "a mixture of experts cannot be counted without its weights"
        raise UserError.of(what, where, "put its *.safetensors beside config.json")
    if quantised := quantised or config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        what = f"the weights are quantised already ({method or 'quantization_config in config.json'})"
        raise UserError.of(what, where, "name the original model; adapter.method qlora quantises it to NF4")
    return config


def _only_attends(config: Mapping[str, object]) -> bool:
    kinds = config.get("layer_types") or ()
    listed = all(kind.endswith("attention") and kind != "linear_attention" for kind in map(str, kinds))  # type: ignore[call-overload]
    return listed and not any(key.startswith(("mamba_", "ssm_")) for key in config)


def _mlp_size(name: str, config: Mapping[str, object]) -> int:
    """Width of the MLP, or of all experts that a token passes through."""
    dense = positive(name, config, "intermediate_size", default=positive(name, config, "moe_intermediate_size", 1))
    if not any(config.get(key) for key in EXPERT_KEYS):
        return dense
    expert = positive(name, config, "moe_intermediate_size", default=dense)
    shared = config.get("shared_expert_intermediate_size") or expert * int(str(config.get("n_shared_experts") or 0))
    return positive(name, config, "num_experts_per_tok") * expert + int(str(shared))
