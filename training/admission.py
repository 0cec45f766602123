"""Whether a training may begin, now that a preflight has measured what it takes; and the words for it."""

from collections.abc import Iterator
from pathlib import Path

from tuneline.contracts.artifacts import Adapter, Plan, Preflight
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.jobs import ProgressEvent
from tuneline.contracts.spec import BudgetSpec
from tuneline.contracts.store import write_whole

FILE = "preflight.json"
GIB = 1 << 30


def priced(measured: Preflight, plan: Plan) -> Preflight:
    """Add the money, at the price by which the plan counted."""
    if plan.usd is None or plan.hours.expected == 0:
        return measured
    return measured.model_copy(update={"usd": measured.hours * plan.usd.expected / plan.hours.expected})


def check_budget(measured: Preflight, budget: BudgetSpec, plan: Plan) -> None:
    """Refuse a training that would break its budget, before its first step.

    Raises:
        UserError: with every limit that would be broken.
    """
    problems = list(_broken_limits(measured, budget, plan))
    if problems:
        raise UserError(problems)


def _broken_limits(measured: Preflight, budget: BudgetSpec, plan: Plan) -> Iterator[Problem]:
    memory_gib = measured.peak_memory_bytes / GIB
    if budget.max_memory_gib is not None and memory_gib > budget.max_memory_gib:
        what = f"the preflight measured {memory_gib:.2f} GiB, {budget.max_memory_gib:g} GiB allowed"
        fix = f"lower training.micro_batch_rows (it is {plan.micro_batch_rows})" if plan.micro_batch_rows > 1 else ""
        if not plan.activation_checkpointing:
            fix = f"{fix}{', or ' if fix else ''}set training.activation_checkpointing to `on`"
        yield Problem(what, "budget.max_memory_gib", fix or "shorten data.max_length_tokens")
    for where, value, limit, unit in (
        ("budget.max_hours", measured.hours, budget.max_hours, "h"),
        ("budget.max_usd", measured.usd, budget.max_usd, "USD"),
    ):
        if value is not None and limit is not None and value > limit:
            what = f"the preflight measured a speed that takes {value:.4g} {unit}, {limit:g} {unit} allowed"
            yield Problem(what, where, _fewer_steps(plan.optimizer_steps, limit / value))


def _fewer_steps(steps: int, share: float) -> str:
    affordable = int(steps * share)
    if affordable == 0:
        return f"not one of the {steps:,} steps can be afforded: raise it"
    return f"training.max_optimizer_steps: {affordable} (of {steps:,}) would keep it"


def event_of(measured: Preflight, plan: Plan) -> ProgressEvent:
    """Tell the flow what was measured, beside what was planned."""
    peak, planned = measured.peak_memory_bytes / GIB, plan.memory_bytes.expected / GIB
    note = (
        f"preflight {peak:.1f} GiB (planned {planned:.1f}), {measured.tokens_per_second:,.0f} tokens/s "
        f"(planned {plan.tokens_per_second.expected:,.0f}), {_time(measured.hours)} to go"
    )
    figures = {f"preflight_{name}": float(value) for name, value in measured.model_dump(exclude_none=True).items()}
    return ProgressEvent(done=0, planned=plan.optimizer_steps, unit="steps", note=note, metrics=figures)


def _time(hours: float) -> str:
    minutes = 60 * hours
    if minutes < 10:
        return f"{minutes:.1f} min"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def keep(measured: Preflight, work: Path) -> None:
    """Keep the figures beside the checkpoints, for the attempt that ends the training."""
    folder = work / Adapter.CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, measured.model_dump_json(indent=1))


def read_kept(work: Path) -> Preflight | None:
    """Read the figures of the attempt that began the training; None where it could not measure."""
    try:
        return Preflight.model_validate_json((work / Adapter.CHECKPOINTS / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
