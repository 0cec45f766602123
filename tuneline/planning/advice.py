"""What would make a training fit: only changes that the same estimate says are enough."""

from collections.abc import Iterator

from tuneline.contracts.artifacts import PreparedData
from tuneline.contracts.errors import Problem
from tuneline.contracts.spec import RunSpec
from tuneline.planning.batching import Batching, choose_batching, largest_micro_batch, recipe_of
from tuneline.planning.hardware import GPUS, Device, as_gib
from tuneline.planning.memory import training_memory
from tuneline.planning.model_shape import ModelShape

SHORTEST_ADVISED_TOKENS = 128


def memory_problem(
    spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int, batching: Batching
) -> Problem:
    """Say how much memory is missing, and each single change that would do."""
    needed = batching.memory.total.expected
    largest = max(batching.memory.parts.items(), key=lambda part: part[1])
    what = (
        f"{as_gib(needed)} expected and {as_gib(limit_bytes)} to be had on one {device.name}: "
        f"{as_gib(needed - limit_bytes)} missing, with micro_batch_rows {batching.micro_batch_rows} "
        f"(largest part: {largest[0]}, {as_gib(largest[1])})"
    )
    changes = list(_changes(spec, shape, data, device, limit_bytes))
    fix = f"any one of these fits: {'; '.join(changes)}" if changes else "choose a smaller model"
    return Problem(what, "budget.gpu" if device.kind == "gpu" else "model.base", fix)


def _changes(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int) -> Iterator[str]:
    def fits(section: str, key: str, value: object) -> bool:
        changed = spec.model_copy(update={section: getattr(spec, section).model_copy(update={key: value})})
        return _fits(changed, shape, data, device, limit_bytes)

    training, method = spec.training, spec.adapter.method
    if training.activation_checkpointing == "off" and fits("training", "activation_checkpointing", "auto"):
        yield "training.activation_checkpointing: auto"
    if training.micro_batch_rows not in (None, 1) and fits("training", "micro_batch_rows", None):
        yield "leave training.micro_batch_rows out"
    for other in {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}[method]:
        apart = spec.adapter.initialisation == "pissa"  # which a 4-bit base cannot be taken
        if not (other == "qlora" and apart) and fits("adapter", "method", other):
            yield f"adapter.method: {other}"
    if spec.budget.gpus > 1 and not training.fsdp and fits("training", "fsdp", True):
        yield "training.fsdp: true"
    length = _length_that_fits(spec, shape, data, device, limit_bytes)
    if length:
        yield f"data.max_length_tokens: {length}"
    if spec.budget.max_memory_gib is None:
        larger = [gpu.name for gpu in _larger(device) if _fits(spec, shape, data, gpu, gpu.memory_bytes)]
        if larger:
            yield f"budget.gpu: {larger[0]}"


def _fits(spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int) -> bool:
    return choose_batching(spec, shape, data, device, limit_bytes).fits


def _length_that_fits(
    spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, limit_bytes: int
) -> int | None:
    """Longest length, halving from the longest row, at which one row fits."""
    rows = spec.training.micro_batch_rows or 1
    recipe = recipe_of(spec, shape, data, device, checkpointing=spec.training.activation_checkpointing != "off")
    length = data.longest_tokens // 2
    while length >= SHORTEST_ADVISED_TOKENS:
        lengths = data.lengths.model_copy(update={"max": length})
        shorter = data.model_copy(update={"lengths": lengths, "longest_rejected_tokens": 0})
        if training_memory(shape, recipe, largest_micro_batch(shorter, rows)).total.high <= limit_bytes:
            return length
        length //= 2
    return None


def _larger(device: Device) -> list[Device]:
    """GPUs with more memory than the device, smallest first; every GPU is a step up from a CPU that is too small."""
    gpus = sorted(GPUS.values(), key=lambda gpu: gpu.memory_bytes)
    return [gpu for gpu in gpus if gpu.memory_bytes > device.memory_bytes]
