"""The tensors that a `config.json` promises: every weight of a Llama-like model, by name and shape."""

import re
from collections.abc import Mapping

from tuneline.contracts.errors import UserError

TensorShapes = Mapping[str, tuple[int, ...]]

ANALYTIC_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s whose tensors `tensors_of_config` can name without a weights file."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


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
    hidden, vocab = positive(name, config, "hidden_size"), positive(name, config, "vocab_size")
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = (vocab, hidden)
    layer = _tensors_of_layer(name, config, model_type)
    for number in range(positive(name, config, "num_hidden_layers")):
        tensors |= {f"model.layers.{number}.{key}": shape for key, shape in layer.items()}
    return tensors


def _tensors_of_layer(name: str, config: Mapping[str, object], model_type: str) -> dict[str, tuple[int, ...]]:
    hidden, mlp = positive(name, config, "hidden_size"), positive(name, config, "intermediate_size")
    heads = positive(name, config, "num_attention_heads")
    head_dim = positive(name, config, "head_dim", default=hidden // heads)
    attention = heads * head_dim
    kv = positive(name, config, "num_key_value_heads", default=heads) * head_dim
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


def check_weights(name: str, config: Mapping[str, object], tensors: TensorShapes) -> None:
    """Compare the weights with the config: transformers would fill what is missing with random numbers.

    Only the types that `tensors_of_config` knows are compared.

    Raises:
        UserError: naming tensors that are missing, have another shape or are too many.
    """
    if str(config.get("model_type")) not in ANALYTIC_MODEL_TYPES:
        return
    expected = tensors_of_config(name, config)
    layers = positive(name, config, "num_hidden_layers")
    wrong = [
        f"{key} is {tensors[key]} and not {shape}" if key in tensors else f"{key} is missing"
        for key, shape in expected.items()
        if tensors.get(key) != shape
    ]
    wrong += [f"{key} belongs to no layer" for key in tensors if (at := _LAYER.match(key)) and int(at[1]) >= layers]
    if wrong:
        what = f"the weights are not those of its config.json: {'; '.join(wrong[:3])} ({len(wrong)} tensors in all)"
        raise UserError.of(what, f"model.base {name}", "put config.json and *.safetensors of the same model together")


def positive(name: str, config: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Read a size from a config.

    Raises:
        UserError: when it is no positive whole number.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or value <= 0:
        what = f"`{key}` is {value!r} where a positive whole number is needed"
        raise UserError.of(what, f"model.base {name} (config.json)", "name a decoder-only transformer")
    return value
