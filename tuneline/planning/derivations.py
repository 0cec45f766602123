"""Every setting that a plan chose, with its reason in a sentence."""

from collections.abc import Iterator

from tuneline.contracts.artifacts import DerivedValue, PreparedData
from tuneline.contracts.spec import RunSpec
from tuneline.planning.batching import (
    MICRO_BATCH_TOKENS,
    Batching,
)
from tuneline.planning.cost import Cost
from tuneline.planning.hardware import CPU_MEMORY_SHARE, Device, as_gib


def derivations(
    spec: RunSpec,
    data: PreparedData,
    device: Device,
    limit_bytes: int,
    batching: Batching,
    optimizer_steps: int,
    cost: Cost | None,
) -> tuple[DerivedValue, ...]:
    """List the values that a plan derived; a value that the config states is not among them."""
    training = spec.training
    derived: list[DerivedValue] = [
        DerivedValue(key="optimizer_steps", value=str(optimizer_steps), reason=_steps_reason(spec, data)),
        DerivedValue(
            key="accumulation_steps",
            value=str(batching.accumulation_steps),
            reason=_accumulation_reason(spec, batching),
        ),
    ]
    if training.micro_batch_rows is None:
        reason = _micro_batch_reason(device, limit_bytes, batching)
        derived.append(DerivedValue(key="micro_batch_rows", value=str(batching.micro_batch_rows), reason=reason))
    if training.activation_checkpointing == "auto":
        reason = (
            "not even one row fits without it; it costs a second forward pass, about 30 % of the time"
            if batching.checkpointing
            else "it fits without, which saves a second forward pass, about 30 % of the time"
        )
        derived.append(_switch("activation_checkpointing", batching.checkpointing, reason))
    if training.packing == "auto":
        derived.append(_switch("packing", batching.packing, _packing_reason(spec, device, packing=batching.packing)))
    return (*derived, *_limits(spec, device, limit_bytes, batching), *_money(device, cost), *_serving(spec))


def _switch(key: str, on: bool, reason: str) -> DerivedValue:
    return DerivedValue(key=key, value="on" if on else "off", reason=reason)


def _steps_reason(spec: RunSpec, data: PreparedData) -> str:
    training = spec.training
    text = f"{training.epochs:g} x {data.train_rows:,} rows at {training.effective_batch_rows} a step"
    if training.max_optimizer_steps is None:
        return text
    return f"{text}, and at most training.max_optimizer_steps ({training.max_optimizer_steps:,})"


def _accumulation_reason(spec: RunSpec, batching: Batching) -> str:
    devices = f" x {spec.budget.gpus} GPUs" if spec.budget.gpus > 1 else ""
    return (
        f"at most: {batching.micro_batch_rows} rows x {batching.accumulation_steps}{devices} = "
        f"{spec.training.effective_batch_rows}, training.effective_batch_rows; of short rows, more go together"
    )


def _micro_batch_reason(device: Device, limit_bytes: int, batching: Batching) -> str:
    kind = "power of two" if device.kind == "gpu" else "number"
    return (
        f"the largest {kind} that divides a step's rows, stays below {MICRO_BATCH_TOKENS[device.kind]:,} tokens and "
        f"fits: {as_gib(batching.memory.total.high)} at most of {as_gib(limit_bytes)}"
        if batching.fits
        else f"the fewest rows; the upper end of the estimate, {as_gib(batching.memory.total.high)}, does not fit"
    )


def _packing_reason(spec: RunSpec, device: Device, *, packing: bool) -> str:
    if device.kind == "cpu":
        return (
            "the rows of a micro-batch are joined into one, without padding: attention takes them one by one"
            if packing
            else "only with sdpa attention, and in models that mix tokens by attention alone, are rows joined on a CPU"
        )
    if spec.model.attention == "flash_attention_2":
        return "varlen attention: the rows of a micro-batch are joined into one, without padding"
    return f"{spec.model.attention} attention is not varlen; model.attention flash_attention_2 would make packing pay"


def _limits(spec: RunSpec, device: Device, limit_bytes: int, batching: Batching) -> Iterator[DerivedValue]:
    if spec.budget.max_memory_gib is None:
        reason = (
            f"what CUDA reports as the total of one {device.name}"
            if device.kind == "gpu"
            else f"{CPU_MEMORY_SHARE:.0%} of the {as_gib(device.memory_bytes)} that are available now"
        )
        yield DerivedValue(key="memory_limit", value=as_gib(limit_bytes), reason=reason)
    if not batching.fits:
        reason = f"expected {as_gib(batching.memory.total.expected)}, at most {as_gib(batching.memory.total.high)}"
        yield DerivedValue(key="memory_risk", value="may run out", reason=reason)


def _money(device: Device, cost: Cost | None) -> Iterator[DerivedValue]:
    if cost is not None:
        price = f"{cost.price.price_usd_per_hour:g}"
        reason = f"median row of the price book: {cost.price}; the interval takes the cheapest and the dearest"
        yield DerivedValue(key="price_usd_per_hour", value=price, reason=reason)
    elif device.kind == "gpu":
        reason = f"the price book has no row for the {device.name}; add one to tuneline/planning/prices.yaml"
        yield DerivedValue(key="price_usd_per_hour", value="unknown", reason=reason)


def _serving(spec: RunSpec) -> Iterator[DerivedValue]:
    if reasons := spec.adapter.why_merged:
        yield DerivedValue(key="served", value="merged only", reason="; ".join(reasons))
