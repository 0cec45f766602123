"""What a config asks for against what model, data and device can give: every problem is found, not only the first."""

import difflib
from collections.abc import Iterator

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import Problem
from tuneline.contracts.spec import AdapterSpec, RunSpec
from tuneline.planning.hardware import Device
from tuneline.planning.model_shape import LinearModule, ModelShape

ALL_LINEAR = "all-linear"
OUTSIDE_LAYERS = ("lm_head", "embed_tokens")


def adapted_modules(adapter: AdapterSpec, shape: ModelShape) -> tuple[LinearModule, ...]:
    """Return the linear modules that the config adapts; names that match nothing are left out."""
    names = target_names(adapter)
    return tuple(module for module in shape.linears if names == (ALL_LINEAR,) or module.name in names)


def target_names(adapter: AdapterSpec) -> tuple[str, ...]:
    """Return the config's targets as a tuple of names."""
    targets = adapter.target_modules
    return (targets,) if isinstance(targets, str) else targets


def request_problems(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device) -> list[Problem]:
    """List what cannot be trained as asked, whatever memory, time and money would allow."""
    return [
        *_target_problems(spec.adapter, shape),
        *_device_problems(spec, device),
        *_batch_problems(spec, data),
        *_length_problems(data, shape),
    ]


def _target_problems(adapter: AdapterSpec, shape: ModelShape) -> Iterator[Problem]:
    if adapter.method == "full":
        return
    where, available = "adapter.target_modules", ", ".join(shape.linear_names)
    for name in target_names(adapter):
        if name in OUTSIDE_LAYERS:
            what = f"`{name}` cannot be adapted: the loss is computed from its weight directly, past any adapter"
            yield Problem(what, where, f"leave it out; adapt some of {available}")
        elif name != ALL_LINEAR and name not in shape.linear_names:
            close = difflib.get_close_matches(name, shape.linear_names, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            yield Problem(f"`{name}` matches no linear module", where, f"{hint}the model has {available}")


def _device_problems(spec: RunSpec, device: Device) -> Iterator[Problem]:
    budget, model = spec.budget, spec.model
    if device.kind == "cpu" and budget.gpus > 1:
        yield Problem(f"{budget.gpus} GPUs of kind `none`", "budget.gpus", "name the GPU in budget.gpu, or ask for one")
    if device.kind == "gpu" and model.dtype == "bfloat16" and not device.has_bfloat16:
        what = f"the {device.name} has no bfloat16: it would train in float32, at an eighth of its speed"
        yield Problem(what, "model.dtype", "use float16, or an Ampere GPU or newer")
    if model.attention == "flash_attention_2" and not device.has_flash_attention:
        what = f"flash_attention_2 does not run on the {'CPU' if device.kind == 'cpu' else device.name}"
        yield Problem(what, "model.attention", "use sdpa, or an Ampere GPU or newer")
    if spec.training.fsdp and (device.kind == "cpu" or budget.gpus == 1):
        yield Problem("FSDP has one device to shard over", "training.fsdp", "raise budget.gpus, or set it to false")


def _batch_problems(spec: RunSpec, data: PreparedData) -> Iterator[Problem]:
    training, gpus = spec.training, spec.budget.gpus
    effective, where = training.effective_batch_rows, "training.effective_batch_rows"
    if effective > data.train_rows:
        what = f"one step takes {effective:,} rows and the training data has {data.train_rows:,}"
        yield Problem(what, where, f"set it to {data.train_rows} or less, or add rows")
    if effective % gpus:
        below, above = effective - effective % gpus, effective + gpus - effective % gpus
        choice = f"{below} or {above}" if below else str(above)
        yield Problem(f"{effective} rows do not divide over {gpus} GPUs", where, f"use {choice}")
    elif training.micro_batch_rows and (effective // gpus) % training.micro_batch_rows:
        rows = effective // gpus
        divisors = ", ".join(str(number) for number in range(1, rows + 1) if rows % number == 0)
        what = f"{training.micro_batch_rows} does not divide the {rows} rows that a device takes per step"
        yield Problem(what, "training.micro_batch_rows", f"use one of {divisors}, or leave it out")


def _length_problems(data: PreparedData, shape: ModelShape) -> Iterator[Problem]:
    if data.longest_tokens > shape.context_tokens:
        what = (
            f"the longest row has {data.longest_tokens:,} tokens and the model positions for {shape.context_tokens:,}"
        )
        yield Problem(what, "data.max_length_tokens", f"set it to {shape.context_tokens} or less")
