"""What each stage made, in the few words and figures of a table's cell."""

from functools import singledispatch

from tuneline.contracts.artifacts import (
    Adapter,
    Estimate,
    EvalReport,
    MergedModel,
    Plan,
    PreparedData,
    Record,
    RegisteredModel,
    Release,
    ServingImage,
    SmokeReport,
    Verdict,
)

MIB = 2**20
GIB = 2**30


@singledispatch
def summarise(record: Record) -> str:
    """Say what a record describes."""
    raise AssertionError(f"no summary for {type(record).__name__}")


@summarise.register
def _(record: PreparedData) -> str:
    learned = record.learned_tokens / record.train_tokens
    kept = f", {record.retention_rows:,} for retention" if record.retention_rows else ""
    return (
        f"{record.train_rows:,} rows, {record.train_tokens:,} tokens ({learned:.0%} learned); "
        f"{record.held_out_rows:,} held out{kept}"
    )


@summarise.register
def _(record: Plan) -> str:
    share = record.trainable_parameters / record.parameters
    money = f", {record.usd.low:,.2f} to {record.usd.high:,.2f} USD" if record.usd else ""
    return (
        f"{record.optimizer_steps:,} steps on {record.device}, {share:.1%} of {count(record.parameters)} parameters, "
        f"{size(record.memory_bytes.expected)}, {duration(record.hours)}{money}"
    )


@summarise.register
def _(record: Adapter) -> str:
    resumed = f", resumed at step {record.resumed_from_step:,}" if record.resumed_from_step else ""
    speed = record.train_tokens / record.train_seconds if record.train_seconds else 0.0
    rungs = f", out of memory {len(record.rungs)} x: {record.rungs[-1].action}" if record.rungs else ""
    return (
        f"{record.method} on {_covered(record)}, {record.optimizer_steps:,} steps, "
        f"loss {record.first_loss:.3f} to {record.last_loss:.3f}, "
        f"{speed:,.0f} tokens/s{resumed}{rungs}{_held_out(record)}"
    )


def _held_out(record: Adapter) -> str:
    found = record.held_out
    if found is None:
        return ""
    early = ", stopped early" if found.stopped_early else ""
    return f"{early}, held-out loss {found.best.loss:.3f} at best (step {found.best.step:,})"


def summarise_training(record: Adapter, plan: Plan) -> str:
    """Say what a training made, and what its preflight measured beside what was planned."""
    measured = record.preflight
    if measured is None:
        return summarise(record)
    return (
        f"{summarise(record)}; preflight {size(measured.peak_memory_bytes)} "
        f"(planned {size(plan.memory_bytes.expected)}), {measured.tokens_per_second:,.0f} tokens/s "
        f"(planned {plan.tokens_per_second.expected:,.0f})"
    )


@summarise.register
def _(record: MergedModel) -> str:
    proof = record.certificate
    return f"{size(record.bytes)} {record.dtype}, KL {proof.mean_kl:.1e}, top-1 {proof.top1_agreement:.2%}"


@summarise.register
def _(record: EvalReport) -> str:
    parts = []
    for suite in dict.fromkeys(score.suite for score in record.scores):
        scores = [score for score in record.scores if score.suite == suite]
        metric = "exact_match" if "exact_match" in scores[0].metrics else "held_out_loss"
        write = "{:.1%}".format if metric == "exact_match" else "{:.3f}".format
        figures = ", ".join(f"{score.model} {write(score.metrics[metric])}" for score in scores)
        parts.append(f"{suite} {metric.replace('_', ' ')}: {figures}")
    return "; ".join(parts)


@summarise.register
def _(record: Verdict) -> str:
    return f"{record.outcome}, {len(record.checks)} checks"


@summarise.register
def _(record: RegisteredModel) -> str:
    alias = f", alias {record.alias}" if record.alias else ", no alias"
    return f"{record.name} version {record.version}{alias}"


@summarise.register
def _(record: ServingImage) -> str:
    return f"{record.reference}, {record.own_layers} layers on {record.base_name}"


@summarise.register
def _(record: SmokeReport) -> str:
    passed = sum(rung.passed for rung in record.rungs)
    return f"{passed} of {len(record.rungs)} rungs, first answer after {record.start_seconds:.0f} s"


@summarise.register
def _(record: Release) -> str:
    return record.reason


def _covered(record: Adapter) -> str:
    """Say what share of the linear weights is adapted, and quantised where any is."""
    weights = max(1, sum(line.parameters for line in record.coverage))
    adapted = sum(line.adapted_parameters for line in record.coverage) / weights
    quantised = sum(line.quantised_parameters for line in record.coverage) / weights
    return f"{adapted:.0%} of the linear weights" + (f" ({quantised:.0%} in NF4)" if quantised else "")


def count(number: float) -> str:
    """Write a number of parameters as people say it."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f}{unit}"
    return f"{number:.0f}"


def size(number_bytes: float) -> str:
    """Write a size in binary units."""
    return f"{number_bytes / GIB:.1f} GiB" if number_bytes >= GIB else f"{number_bytes / MIB:.1f} MiB"


def duration(hours: Estimate) -> str:
    """Write a time as an interval, in minutes below two hours."""
    if hours.high < 2:
        return f"{hours.low * 60:.1f} to {hours.high * 60:.1f} min"
    return f"{hours.low:.1f} to {hours.high:.1f} h"
