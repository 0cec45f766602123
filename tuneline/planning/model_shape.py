"""What a plan needs of a model: its widths, its linear modules and its parameter count; never its weights."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tuneline.contracts.errors import UserError

TensorShapes = Mapping[str, tuple[int, ...]]

ANALYTIC_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose tensors `tensors_of_config` can name without a weights file."""
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")
_IN_A_LAYER = re.compile(r"\.\d+\.(?:.+\.)?(?P<module>\w+)\.weight$")


@dataclass(frozen=True)
class LinearModule:
    """Linear layers of one name and size: `q_proj`, `count` times in the model."""

    name: str
    in_features: int
    out_features: int
    count: int

    @property
    def parameters(self) -> int:
        """Weights of all of them, without biases."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder-only transformer; `linears` are the modules inside its layers, so never the output head."""

    name: str
    layers: int
    hidden_size: int
    attention_size: int
    """Heads times head dimension: the width of the queries."""
    kv_size: int
    """Key-value heads times head dimension."""
    mlp_size: int
    heads: int
    vocab_size: int
    context_tokens: int
    """Longest sequence that the model has positions for."""
    parameters: int
    linears: tuple[LinearModule, ...]

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear modules: what NF4 quantises."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: the linear modules and the output head."""
        return self.linear_parameters + self.hidden_size * self.vocab_size

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
        UserError: a key is missing, or the model is a mixture of experts, already quantised or of an unknown type.
    """
    config = _text_config(name, config)
    hidden_size, heads = _positive(name, config, "hidden_size"), _positive(name, config, "num_attention_heads")
    kv_heads = _positive(name, config, "num_key_value_heads", default=heads)
    head_dim = _positive(name, config, "head_dim", default=hidden_size // heads)
    if tensors is None:
        tensors = tensors_of_config(name, config)
    if config.get("tie_word_embeddings"):
        tensors = {key: shape for key, shape in tensors.items() if not key.endswith("lm_head.weight")}
    return ModelShape(
        name=name,
        layers=_positive(name, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        attention_size=heads * head_dim,
        kv_size=kv_heads * head_dim,
        mlp_size=_positive(name, config, "intermediate_size"),
        heads=heads,
        vocab_size=_positive(name, config, "vocab_size"),
        context_tokens=_positive(name, config, "max_position_embeddings"),
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        linears=_linears(tensors),
    )


def tensors_of_config(name: str, config: Mapping[str, object]) -> TensorShapes:
    """Name every weight of a Llama-like model with its shape, as its safetensors files would.

    Raises:
        UserError: the type is not one of `ANALYTIC_MODEL_TYPES`.
    """
    model_type = str(config.get("model_type"))
    if model_type not in ANALYTIC_MODEL_TYPES:
        known = ", ".join(ANALYTIC_MODEL_TYPES)
        what = f"the parameters of model_type `{model_type}` cannot be counted without its weights"
        raise UserError.of(what, f"model.base {name}", f"put its *.safetensors beside config.json (known: {known})")
    hidden, vocab = _positive(name, config, "hidden_size"), _positive(name, config, "vocab_size")
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = (vocab, hidden)
    layer = _tensors_of_layer(name, config, model_type)
    for number in range(_positive(name, config, "num_hidden_layers")):
        tensors |= {f"model.layers.{number}.{key}": shape for key, shape in layer.items()}
    return tensors


def _tensors_of_layer(name: str, config: Mapping[str, object], model_type: str) -> dict[str, tuple[int, ...]]:
    hidden, mlp = _positive(name, config, "hidden_size"), _positive(name, config, "intermediate_size")
    heads = _positive(name, config, "num_attention_heads")
    head_dim = _positive(name, config, "head_dim", default=hidden // heads)
    attention = heads * head_dim
    kv = _positive(name, config, "num_key_value_heads", default=heads) * head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (attention, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, attention),
        "mlp.gate_proj.weight": (mlp, hidden),
        "mlp.up_proj.weight": (mlp, hidden),
        "mlp.down_proj.weight": (hidden, mlp),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if model_type == "qwen3":
        tensors |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    if model_type == "qwen2":  # its config has no key for them: queries, keys and values always have a bias
        tensors |= {f"self_attn.{part}_proj.bias": (size,) for part, size in (("q", attention), ("k", kv), ("v", kv))}
    return tensors


def _linears(tensors: TensorShapes) -> tuple[LinearModule, ...]:
    counts: Counter[tuple[str, int, int]] = Counter()
    for key, shape in tensors.items():
        match = _IN_A_LAYER.search(key)
        if match and len(shape) == 2:
            out_features, in_features = shape
            counts[match["module"], in_features, out_features] += 1
    return tuple(LinearModule(*key, count) for key, count in counts.items())


def _tensors_of_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:  # reads the header; tensors stay on disk
                tensors |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError.of(f"damaged weights: {error}", str(path), "download the file again") from None
    return tensors


def _text_config(name: str, config: Mapping[str, object]) -> Mapping[str, object]:
    inner = config.get("text_config")
    config = inner if isinstance(inner, Mapping) else config
    where = f"model.base {name}"
    if any(config.get(key) for key in EXPERT_KEYS):
        what = "a mixture of experts: its expert weights are 3-D tensors, which LoRA and NF4 both skip"
        raise UserError.of(what, where, "choose a dense model")
    if config.get("quantization_config"):
        what = "the weights are quantised already"
        raise UserError.of(what, where, "name the original model; adapter.method qlora quantises it to NF4")
    return config


def _positive(name: str, config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or value <= 0:
        what = f"`{key}` is {value!r} where a positive whole number is needed"
        raise UserError.of(what, f"model.base {name} (config.json)", "name a decoder-only transformer")
    return value
