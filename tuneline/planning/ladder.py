"""What to change when a training runs out of memory, cheapest first; the rows of an optimizer step stay the same.

Half the micro-batch with twice the accumulation, down to one row, costs little while the products stay large.
Activation checkpointing costs a second forward pass, about 30 % of the time. Offloading sends what the backward pass
needs over the bus to the host and back, and exists on a GPU only: on a CPU there is no other memory to send it to.
"""

from tuneline.contracts.artifacts import MemoryRung, Plan, PreparedData
from tuneline.contracts.ladder import Ladder, plan_on
from tuneline.contracts.spec import RunSpec


def next_rung(spec: RunSpec, plan: Plan, ladder: Ladder, after_step: int, cause: str) -> MemoryRung | None:
    """Choose the next rung.

    Args:
        spec: the config; `training.activation_checkpointing: off` is kept to.
        plan: the plan as it was made.
        ladder: the rungs that did not suffice.
        after_step: optimizer steps that were done when memory ran out.
        cause: the words of the failure.

    Returns:
        None when nothing is left to try.
    """
    now = plan_on(plan, ladder)
    divisor = ladder.rungs[-1].micro_batch_divisor if ladder.rungs else 1
    rung = MemoryRung(
        action="half the micro-batch",
        micro_batch_divisor=divisor,
        activation_checkpointing=now.activation_checkpointing,
        activation_offloading=now.activation_offloading,
        after_step=after_step,
        cause=cause,
    )
    if now.micro_batch_rows > 1:
        return rung.model_copy(update={"micro_batch_divisor": 2 * divisor})
    if not now.activation_checkpointing and spec.training.activation_checkpointing != "off":
        return rung.model_copy(update={"action": "activation checkpointing", "activation_checkpointing": True})
    if not now.activation_offloading and spec.budget.gpu != "none":
        return rung.model_copy(update={"action": "activation offloading", "activation_offloading": True})
    return None


def describe_rung(plan: Plan, ladder: Ladder) -> str:
    """Say in a line how a training goes on after its last rung."""
    now = plan_on(plan, ladder)
    rows = "row" if now.micro_batch_rows == 1 else "rows"
    extras = [
        name
        for name, on in (
            ("activation checkpointing", now.activation_checkpointing),
            ("activation offloading", now.activation_offloading),
        )
        if on
    ]
    return ", ".join([f"micro-batches of {now.micro_batch_rows} {rows} x {now.accumulation_steps}", *extras])


def exhausted(spec: RunSpec, plan: Plan, data: PreparedData, ladder: Ladder, after_step: int) -> str:
    """Say of a training that ran out of memory on every rung what was tried, and what a user can change."""
    stages = [Ladder(rungs=ladder.rungs[:count]) for count in range(len(ladder.rungs) + 1)]
    steps = [*(rung.after_step for rung in ladder.rungs), after_step]
    tried = "; ".join(
        f"{describe_rung(plan, stage)} (after step {step})" for stage, step in zip(stages, steps, strict=True)
    )
    advice = [f"shorten data.max_length_tokens (the longest row has {data.lengths.max:,} tokens)"]
    if spec.adapter.method == "full":
        advice.append("set adapter.method to lora or qlora")
    elif spec.adapter.method == "lora":
        advice.append("set adapter.method to qlora")
    if spec.training.activation_checkpointing == "off":
        advice.append("let training.activation_checkpointing be auto (it is off)")
    if spec.budget.gpus > 1 and not spec.training.fsdp:
        advice.append("set training.fsdp")
    advice.append("use a larger GPU" if spec.budget.gpu != "none" else "use a machine with more memory, or a GPU")
    return f"every way to need less memory was tried: {tried}. To go on, {', or '.join(advice)}"
