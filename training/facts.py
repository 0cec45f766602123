"""What a training's weights depend on: two attempts with the same facts are one training."""

from tuneline.contracts.artifacts import Plan, PreparedData
from tuneline.contracts.section import flat_values
from tuneline.contracts.spec import RunSpec

OF_THE_WEIGHTS = (
    "objective",
    "preference_beta",
    "effective_batch_rows",
    "learning_rate",
    "schedule",
    "warmup_share",
    "weight_decay",
    "max_grad_norm",
    "seed",
)
"""Keys of the section `training` on which the weights depend; the others say how they are reached, or when saved."""


def facts_of(spec: RunSpec, plan: Plan, prepared: PreparedData) -> dict[str, str]:
    """List the facts, by config key; how a step is cut into micro-batches is none."""
    facts = {f"adapter.{key}": str(value) for key, value in flat_values(spec.adapter)}
    facts |= {f"training.{key}": str(getattr(spec.training, key)) for key in OF_THE_WEIGHTS}
    return facts | {
        "model.base": spec.model.base,
        "model.revision": str(spec.model.revision),
        "model.dtype": spec.model.dtype,
        "prepared data": prepared.receipt_sha256[:16],
        "optimizer steps": str(plan.optimizer_steps),
    }
