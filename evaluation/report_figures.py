"""What the report's tables and tiles say, worked out of the run's records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.charts import LineChart, Segment, line_chart, stacked_bar
from evaluation.gate import LABELS
from evaluation.items import BASE, CANDIDATE, CHAMPION, TARGET
from tuneline.contracts.artifacts import (
    Adapter,
    Certificate,
    Estimate,
    EvalReport,
    Plan,
    SmokeReport,
    SuiteScore,
)

Writer = Callable[[float], str]
GIB, MIB = 2**30, 2**20
MODEL_ORDER = (BASE, CHAMPION, CANDIDATE)


@dataclass(frozen=True)
class Tile:
    """One figure of the page's head."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Prediction:
    """What the plan said, and what was measured."""

    name: str
    low: str
    expected: str
    high: str
    preflight: str
    """Measured before the first step; empty where it was not."""
    measured: str
    inside: bool


@dataclass(frozen=True)
class Proof:
    """A figure of the merge's certificate; `held` is None where it has no limit."""

    name: str
    value: str
    limit: str
    held: bool | None


@dataclass(frozen=True)
class MemoryBar:
    """The planned peak in parts on one bar; `limit` and `measured` are places on it, in per cent of its length."""

    segments: tuple[Segment, ...]
    limit: float
    measured: float | None


@dataclass(frozen=True)
class ScoreTable:
    """Every model's means: a row per suite and model, a column per metric."""

    metrics: tuple[str, ...]
    rows: tuple[SuiteScore, ...]


@dataclass(frozen=True)
class SmallChart:
    """A line with its name."""

    name: str
    chart: LineChart


def tiles(
    plan: Plan | None, adapter: Adapter | None, evaluation: EvalReport | None, smoke: SmokeReport | None, metric: str
) -> Iterator[Tile]:
    """Give the figures that a reader looks for first."""
    if evaluation is not None:
        yield from _score_tile(evaluation.scores, metric)
    if adapter is not None:
        steps = f"loss after {adapter.optimizer_steps:,} steps, from {adapter.first_loss:.3f}"
        yield Tile("Training", f"{adapter.last_loss:.3f}", steps)
        planned = f"planned {_range(plan.hours, lambda hours: duration(hours * 3600))}" if plan else ""
        yield Tile("Training time", duration(adapter.train_seconds), planned)
        planned = f"planned {_range(plan.memory_bytes, size)}" if plan else ""
        yield Tile("Peak memory", size(adapter.peak_memory_bytes), planned)
    if plan is not None and plan.usd is not None:
        yield Tile("Planned cost", f"{plan.usd.expected:,.2f} USD", f"{plan.usd.low:,.2f} to {plan.usd.high:,.2f} USD")
    if smoke is not None:
        passed = sum(rung.passed for rung in smoke.rungs)
        note = f"rungs passed; first answer after {smoke.start_seconds:.0f} s"
        yield Tile("Served image", f"{passed} of {len(smoke.rungs)}", note)


def _score_tile(scores: Sequence[SuiteScore], metric: str) -> Iterator[Tile]:
    values = {
        score.model: score.metrics[metric] for score in scores if score.suite == TARGET and metric in score.metrics
    }
    if CANDIDATE in values:
        others = ", ".join(f"{model} {figure(value, metric)}" for model, value in values.items() if model != CANDIDATE)
        yield Tile(LABELS[metric].capitalize(), figure(values[CANDIDATE], metric), others)


def score_table(scores: Sequence[SuiteScore]) -> ScoreTable:
    """Order the scores as they are read: the target suite first; base, champion, candidate."""
    metrics = tuple(dict.fromkeys(metric for score in scores for metric in score.metrics))
    rows = sorted(scores, key=lambda score: (score.suite != TARGET, score.suite, MODEL_ORDER.index(score.model)))
    return ScoreTable(metrics, tuple(rows))


def small_charts(metrics: Sequence[Mapping[str, float]]) -> tuple[SmallChart, ...]:
    """Draw what training logged beside the loss, where it did."""
    named = (("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm"))
    charts = ((name, line_of(metrics, key, 350, 130)) for key, name in named)
    return tuple(SmallChart(name, chart) for name, chart in charts if chart is not None)


def line_of(
    metrics: Sequence[Mapping[str, float]], key: str, width: int, height: int, beside: str = ""
) -> LineChart | None:
    """Draw one logged value over the optimizer steps, and the points of another one beside it."""
    points, marks = ([(line["step"], line[name]) for line in metrics if name in line] for name in (key, beside))
    return line_chart(points, width, height, marks)


def memory_bar(plan: Plan, adapter: Adapter | None) -> MemoryBar:
    """Lay the planned parts, the device's limit and the measured peak on one bar."""
    measured = adapter.peak_memory_bytes if adapter else 0
    planned = sum(plan.memory_parts_bytes.values())
    # A limit many times the need would squeeze the parts into a sliver: the bar ends at twice the larger of the two.
    whole = max(planned, measured, min(plan.memory_limit_bytes, 2 * max(planned, measured)))
    segments = stacked_bar(list(plan.memory_parts_bytes.items()), whole)
    limit = 100 * plan.memory_limit_bytes / whole
    return MemoryBar(segments, limit, 100 * measured / whole if measured else None)


def predictions(plan: Plan, adapter: Adapter) -> tuple[Prediction, ...]:
    """Hold the plan's estimates against what the preflight and then the training measured."""
    speed = adapter.train_tokens / adapter.train_seconds if adapter.train_seconds else 0.0
    hours = adapter.train_seconds / 3600
    before = adapter.preflight
    rows = [
        _prediction(
            "Peak memory",
            plan.memory_bytes,
            before.peak_memory_bytes if before else None,
            adapter.peak_memory_bytes,
            size,
        ),
        _prediction(
            "Tokens per second",
            plan.tokens_per_second,
            before.tokens_per_second if before else None,
            speed,
            "{:,.0f}".format,
        ),
        _prediction(
            "Training time", plan.hours, before.hours if before else None, hours, lambda value: duration(3600 * value)
        ),
    ]
    if plan.usd is not None and plan.hours.expected:
        price = plan.usd.expected / plan.hours.expected
        rows.append(_prediction("Cost, USD", plan.usd, before.usd if before else None, price * hours, "{:,.2f}".format))
    return tuple(rows)


def _prediction(name: str, estimate: Estimate, preflight: float | None, measured: float, write: Writer) -> Prediction:
    return Prediction(
        name,
        write(estimate.low),
        write(estimate.expected),
        write(estimate.high),
        "" if preflight is None else write(preflight),
        write(measured),
        inside=estimate.low <= measured <= estimate.high,
    )


def proofs(certificate: Certificate) -> tuple[Proof, ...]:
    """Hold the certificate's figures against their limits."""
    limits, scientific, loss = certificate.limits, "{:.1e}".format, "{:.4f}".format
    change = abs(certificate.merged_nll - certificate.trained_nll) / max(certificate.trained_nll, 1e-9)
    rows = [
        _proof("Mean KL divergence, nats per token", certificate.mean_kl, limits.get("mean_kl"), "at most", scientific),
        _proof("KL divergence, 99th percentile", certificate.p99_kl, limits.get("p99_kl"), "at most", scientific),
        _proof(
            "Same most likely token", certificate.top1_agreement, limits.get("top1_agreement"), "at least", _percent
        ),
        _proof("Change of the loss by merging", change, limits.get("merged_nll"), "at most", _percent),
        Proof("Loss of the trained model", loss(certificate.trained_nll), "", None),
        Proof("Loss of the merged model", loss(certificate.merged_nll), "", None),
    ]
    if certificate.original_base_nll is not None:
        rows.append(Proof("Loss when merged on the base before NF4", loss(certificate.original_base_nll), "", None))
    return tuple(rows)


def _proof(name: str, value: float, limit: float | None, side: Literal["at most", "at least"], write: Writer) -> Proof:
    if limit is None:
        return Proof(name, write(value), "", None)
    held = value <= limit if side == "at most" else value >= limit
    return Proof(name, write(value), f"{side} {write(limit)}", held)


def figure(value: float, metric: str) -> str:
    """Write a mean in its unit: a share in per cent, a loss in nats per token."""
    return f"{value:.3f}" if metric == "held_out_loss" else f"{100 * value:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def size(amount_bytes: float) -> str:
    """Write a size in binary units."""
    return f"{amount_bytes / GIB:.1f} GiB" if amount_bytes >= GIB else f"{amount_bytes / MIB:.0f} MiB"


def duration(seconds: float) -> str:
    """Write a time in the two units that tell it best."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _range(estimate: Estimate, write: Writer) -> str:
    return f"{write(estimate.low)} to {write(estimate.high)}"
