"""The plan of a training: a pure function of config, model shape, prepared data and machine."""

import math
from dataclasses import dataclass

from tuneline.contracts.artifacts import Estimate, Plan, PreparedData
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.objectives import objective_of
from tuneline.contracts.spec import BudgetSpec, RunSpec, TrainingSpec
from tuneline.planning.advice import memory_problem
from tuneline.planning.batching import Batching, average_micro_batch, choose_batching
from tuneline.planning.cost import Cost, cost_of, price_book
from tuneline.planning.derivations import derivations
from tuneline.planning.hardware import Device, Machine, device_of, memory_limit_bytes
from tuneline.planning.model_shape import ModelShape
from tuneline.planning.objectives import objective_problems
from tuneline.planning.request import request_problems
from tuneline.planning.speed_notes import speed_notes
from tuneline.planning.throughput import model_flops_per_token, peak_flops_per_second, tokens_per_second


@dataclass(frozen=True)
class Duration:
    """How fast and how long."""

    optimizer_steps: int
    tokens_per_second: Estimate
    hours: Estimate


def make_plan(spec: RunSpec, shape: ModelShape, data: PreparedData, machine: Machine) -> Plan:
    """Plan a training: memory, time and money as intervals, and every setting that the config leaves open.

    Raises:
        UserError: with every reason not to start: a request that cannot be met, too little memory, a budget exceeded.
    """
    if data.train_rows == 0 or data.train_tokens == 0:
        raise UserError.of(
            "no training rows are left", "data.train", "the receipt of prepare says why rows were dropped"
        )
    objective = objective_of(spec.training.objective, data.kind)
    device = device_of(spec.budget, machine)
    limit_bytes = memory_limit_bytes(spec.budget, device)
    problems = [*request_problems(spec, shape, data, device), *objective_problems(spec, data, objective)]
    batching = choose_batching(spec, shape, data, device, limit_bytes)
    if batching.memory.total.expected > limit_bytes:
        problems.append(memory_problem(spec, shape, data, device, limit_bytes, batching))
    duration = _duration(spec, shape, data, device, machine, batching)
    cost = cost_of(duration.hours, device.name, spec.budget.gpus, price_book())
    problems += _budget_problems(spec.budget, device, duration, cost)
    if problems:
        raise UserError(problems)
    return Plan(
        device=device.name if device.kind == "cpu" else f"{spec.budget.gpus} x {device.name}",
        parameters=shape.parameters,
        trainable_parameters=batching.recipe.trainable_parameters(shape),
        optimizer_steps=duration.optimizer_steps,
        micro_batch_rows=batching.micro_batch_rows,
        accumulation_steps=batching.accumulation_steps,
        activation_checkpointing=batching.checkpointing,
        packing=batching.packing,
        memory_bytes=batching.memory.total,
        memory_limit_bytes=limit_bytes,
        memory_parts_bytes=dict(batching.memory.parts),
        tokens_per_second=duration.tokens_per_second,
        hours=duration.hours,
        usd=cost.usd if cost else None,
        model_flops_per_token=model_flops_per_token(shape, batching.recipe),
        peak_flops_per_second=peak_flops_per_second(device, batching.recipe, spec.budget.gpus),
        derived=(
            *derivations(spec, data, device, limit_bytes, batching, duration.optimizer_steps, cost),
            *speed_notes(
                spec, shape, data, device, machine, limit_bytes, batching, duration.tokens_per_second.expected
            ),
        ),
    )


def optimizer_steps(training: TrainingSpec, train_rows: int) -> int:
    """Optimizer steps of a run; rows that do not fill an epoch's last step open the next epoch."""
    steps = math.ceil(round(training.epochs * train_rows, 6) / training.effective_batch_rows)
    return min(steps, training.max_optimizer_steps or steps)


def _duration(
    spec: RunSpec, shape: ModelShape, data: PreparedData, device: Device, machine: Machine, batching: Batching
) -> Duration:
    mean_tokens = data.mean_row_tokens
    average = average_micro_batch(spec, data, batching)
    speed = tokens_per_second(
        shape,
        batching.recipe,
        device,
        devices=spec.budget.gpus,
        cores=machine.cores,
        packing=batching.packing,
        micro_batch_tokens=average.tokens,
        row_tokens=mean_tokens / data.sequences_per_row,
        useful_share=average.useful_share,
    )
    steps = optimizer_steps(spec.training, data.train_rows)
    tokens = steps * spec.training.effective_batch_rows * mean_tokens
    hours = [tokens / value / 3600 for value in (speed.high, speed.expected, speed.low)]
    return Duration(steps, speed, Estimate(low=hours[0], expected=hours[1], high=hours[2]))


def _budget_problems(budget: BudgetSpec, device: Device, duration: Duration, cost: Cost | None) -> list[Problem]:
    problems = []
    hours, steps = duration.hours.expected, duration.optimizer_steps
    if budget.max_hours is not None and hours > budget.max_hours:
        fix = f"{_fewer_steps(steps, budget.max_hours / hours)}; or a faster GPU, or more of them"
        problems.append(Problem(f"{hours:.2f} h expected, {budget.max_hours:g} h allowed", "budget.max_hours", fix))
    if budget.max_usd is None or device.kind == "cpu":
        return problems
    if cost is None:
        what, fix = f"no price is known for the {device.name}", "add a row to tuneline/planning/prices.yaml"
        problems.append(Problem(what, "budget.max_usd", fix))
    elif cost.usd.expected > budget.max_usd:
        what = f"${cost.usd.expected:.2f} expected, ${budget.max_usd:.2f} allowed, at {cost.price}"
        problems.append(Problem(what, "budget.max_usd", _fewer_steps(steps, budget.max_usd / cost.usd.expected)))
    return problems


def _fewer_steps(steps: int, share: float) -> str:
    affordable = int(steps * share)
    if affordable == 0:
        return f"not one of the {steps:,} steps can be afforded: raise it"
    return f"training.max_optimizer_steps: {affordable} (of {steps:,}) would keep it"
