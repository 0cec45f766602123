"""The identity of every stage's artifact: which part of the config, which inputs, whose code, which libraries.

Pure: values in, fingerprint out. What a user may change without changing the result (where checkpoints go, how often
metrics are logged, where a file lies) is left out here, in one place.
"""

from collections.abc import Mapping

from tuneline.contracts.fingerprint import fingerprint
from tuneline.contracts.spec import RunSpec
from tuneline.planning.hardware import Machine

DATA_PATHS = {"train", "held_out", "replay", "retention"}
"""Fields that say where rows lie; their content's hash stands for them."""
UNSEEN_IN_WEIGHTS = {"checkpoint_every_optimizer_steps", "keep_checkpoints", "log_every_optimizer_steps"}

MEMORY_STEP_BYTES = 4 << 30

ANSWERING = tuple(
    f"evaluation.{module}"
    for module in ("run", "suites", "items", "batching", "loading", "generation", "losses", "scoring", "probes")
)
"""Modules that decide what a model answers; the gate and the report may change without asking again."""
TRAINING_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def prepare_identity(spec: RunSpec, tokenizer_sha256: str, source_sha256: Mapping[str, str]) -> str:
    """Identify the prepared data by the sources' bytes, the data section and the base's tokenizer."""
    section = {"data": spec.data.model_dump(exclude=DATA_PATHS), "template": spec.model.chat_template}
    inputs = [tokenizer_sha256, *(f"{key}={digest}" for key, digest in sorted(source_sha256.items()))]
    return fingerprint("prepare", section, inputs, ["tuneline.data"], ["transformers", "tokenizers"])


def plan_identity(spec: RunSpec, prepared: str, machine: Machine) -> str:
    """Identify a plan; unlike all others it depends on the machine, since that is what it is about.

    Free memory counts in steps of 4 GiB: what a browser takes is no reason for another plan.
    """
    section = {
        "model": spec.model.model_dump(),
        "adapter": spec.adapter.model_dump(),
        "training": spec.training.model_dump(),
        "budget": spec.budget.model_dump(),
        "cores": machine.cores,
        "memory": machine.available_memory_bytes // MEMORY_STEP_BYTES,
        "bfloat16": machine.has_bfloat16,
    }
    return fingerprint("plan", section, [prepared], ["tuneline.planning"], [])


def train_identity(spec: RunSpec, base_sha256: str, prepared: str) -> str:
    """Identify the trained weights; the plan's micro-batch is left out, since the effective batch decides."""
    section = {
        "dtype": spec.model.dtype,
        "attention": spec.model.attention,
        "adapter": spec.adapter.model_dump(),
        "training": spec.training.model_dump(exclude=UNSEEN_IN_WEIGHTS),
    }
    return fingerprint("train", section, [base_sha256, prepared], ["training"], TRAINING_LIBRARIES)


def merge_identity(spec: RunSpec, adapter: str) -> str:
    """Identify the merged weights and their certificate."""
    return fingerprint("merge", {"dtype": spec.model.dtype}, [adapter], ["training"], TRAINING_LIBRARIES)


def evaluate_identity(spec: RunSpec, prepared: str, merged: str, champion: str | None) -> str:
    """Identify the answers of base, candidate and champion."""
    section = {
        "evaluation": spec.evaluation.model_dump(),
        "serving": spec.serving.model_dump(include={"probes", "dtype", "max_model_len"}),
        "draw": spec.data.seed,
    }
    inputs = [prepared, merged, champion or "no champion"]
    return fingerprint("evaluate", section, inputs, ANSWERING, ["torch", "transformers"])


def decide_identity(spec: RunSpec, evaluation: str) -> str:
    """Identify a verdict."""
    return fingerprint("decide", spec.gate, [evaluation], ["evaluation.gate", "evaluation.intervals"], ["scipy"])


def package_identity(spec: RunSpec, merged: str, base_image_id: str) -> str:
    """Identify an image; the base counts by its content, not by its name."""
    section = {"serving": spec.serving.model_dump(exclude={"base_image", "probes"}), "model": spec.model_name}
    return fingerprint("package", section, [merged, base_image_id], ["tuneline.serving"], [])


def verify_identity(image: str, evaluation: str) -> str:
    """Identify a smoke report."""
    return fingerprint("verify", {}, [image, evaluation], ["tuneline.serving"], [])
