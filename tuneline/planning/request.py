"""What a config asks for against what model, data and device can give: every problem is found, not only the first."""

from collections.abc import Iterator
from dataclasses import replace

from tuneline.contracts.adapter_spec import AdapterSpec
from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import Problem
from tuneline.contracts.objectives import WITH_REFERENCE, objective_of
from tuneline.contracts.spec import RunSpec
from tuneline.contracts.targets import adapts_module, adapts_parameter, target_problems
from tuneline.planning.hardware import Device
from tuneline.planning.model_shape import ModelShape
from tuneline.planning.modules import FusedWeight, LinearModule


def adapted_modules(adapter: AdapterSpec, shape: ModelShape) -> tuple[LinearModule, ...]:
    """Return the linear modules that the config adapts; names that match nothing are left out."""
    if adapter.method == "full":
        return ()
    found = []
    for module in shape.linears:
        paths = tuple(path for path in module.paths if adapts_module(adapter, path))
        if paths:
            found.append(replace(module, paths=paths))
    return tuple(found)


def adapted_weights(adapter: AdapterSpec, shape: ModelShape) -> tuple[FusedWeight, ...]:
    """Return the fused weights that the config adapts."""
    return tuple(weight for weight in shape.fused if adapts_parameter(adapter, weight.path))


def request_problems(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device) -> list[Problem]:
    """List what cannot be trained as asked, whatever memory, time and money would allow."""
    return [
        *adapter_problems(spec.adapter, shape),
        *_reference_problems(spec, data),
        *_device_problems(spec, device),
        *_batch_problems(spec, data),
        *_length_problems(data, shape),
    ]


def adapter_problems(adapter: AdapterSpec, shape: ModelShape) -> list[Problem]:
    """List what of the section `adapter` this model cannot give."""
    if adapter.method == "full":
        return []
    problems = target_problems(adapter, shape.adaptable)
    if adapter.initialisation == "pissa":
        for module in adapted_modules(adapter, shape):
            components = min(module.in_features, module.out_features)
            if adapter.rank > components:
                what = f"PiSSA takes {adapter.rank} components out of `{module.name}`, which has {components}"
                fix = f"set it to {components} or less, or adapter.initialisation to zero"
                problems.append(Problem(what, "adapter.rank", fix))
    return problems


def _reference_problems(spec: RunSpec, data: PreparedData) -> Iterator[Problem]:
    objective = objective_of(spec.training.objective, data.kind)
    if spec.adapter.initialisation == "pissa" and objective in WITH_REFERENCE:
        what = f"{objective} compares with the base, which PiSSA takes apart: without the adapter only the rest is left"
        yield Problem(what, "adapter.initialisation", "set it to zero")


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
