"""vLLM's settings inside the image, as its `--config` file reads them (vLLM 0.32)."""

from typing import Final

import yaml

from tuneline.contracts.spec import ServingSpec

MODEL_DIR: Final = "/model"
SETTINGS_DIR: Final = "/etc/tuneline"
SETTINGS_FILE: Final = f"{SETTINGS_DIR}/vllm.yaml"
PROVENANCE_FILE: Final = f"{SETTINGS_DIR}/provenance.json"
ASK_FILE: Final = f"{SETTINGS_DIR}/ask.py"
HOME_DIR: Final = "/home/vllm"
PORT: Final = 8000
EXIT_MARGIN_SECONDS: Final = 30
"""What the server gets to end its processes after the last answer; it takes up to 12 s on two busy cores."""
FINGERPRINT_LENGTH: Final = 16
"""Hex digits of the weights' sha256 that every response carries as `system_fingerprint`."""


def vllm_settings(spec: ServingSpec, model_name: str, weights_sha256: str) -> str:
    """Write vLLM's settings file.

    Args:
        spec: the config's serving section.
        model_name: name under which clients ask for the model.
        weights_sha256: identity of the merged weights, hex.
    """
    return yaml.safe_dump(_settings(spec, model_name, weights_sha256, MODEL_DIR), sort_keys=True)


def vllm_arguments(spec: ServingSpec, model_name: str, weights_sha256: str, model_dir: str) -> list[str]:
    """Write the same settings as arguments, for a server that finds the model in `model_dir`."""
    settings = sorted(_settings(spec, model_name, weights_sha256, model_dir).items())
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in settings if value is not False]


def _settings(spec: ServingSpec, model_name: str, weights_sha256: str, model_dir: str) -> dict[str, object]:
    settings: dict[str, object] = {
        "model": model_dir,
        "served-model-name": model_name,
        "host": "0.0.0.0",
        "port": PORT,
        "dtype": spec.dtype,
        "max-num-seqs": spec.max_num_seqs,
        "gpu-memory-utilization": spec.gpu_memory_utilization,
        "enforce-eager": spec.enforce_eager,
        "seed": 0,
        # `auto` would apply the sampling defaults of the model's generation_config.json (a temperature, a repetition
        # penalty) to every request that leaves them out, and so answer otherwise than the model that was evaluated.
        # The stop ids of that file hold with either choice.
        "generation-config": "vllm",
        "shutdown-timeout": spec.drain_seconds,
        "fingerprint-mode": "custom",
        "fingerprint-value": response_fingerprint(weights_sha256),
        "disable-fastapi-docs": True,  # the page loads its scripts from a public network
    }
    if spec.max_model_len is not None:
        settings["max-model-len"] = spec.max_model_len
    return settings


def server_environment(spec: ServingSpec) -> dict[str, str]:
    """Environment of the server, where the base image does not set the variable: offline, silent, a writable home."""
    environment = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": HOME_DIR,
        "TRANSFORMERS_OFFLINE": "1",
        "USER": "vllm",  # torch asks for the user's name, which a uid without a passwd entry does not have
        "VLLM_NO_USAGE_STATS": "1",
    }
    if spec.enforce_eager:
        # vLLM compiles its rank of prompt tokens even so: 17 s at the first request for the prompt's log-probabilities
        # on two cores, 0.02 s without.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


def response_fingerprint(weights_sha256: str) -> str:
    """Shorten the weights' identity to what responses carry."""
    return weights_sha256[:FINGERPRINT_LENGTH]
