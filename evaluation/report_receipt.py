"""What the receipt's tables say, for the page and for the terminal, worked out of the record of the prepare stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.report_checks import CheckLine, Mark, RoleLine, check_lines, role_lines
from evaluation.report_lengths import LengthChart, length_chart
from evaluation.report_lens import LensPiece, lens_pieces
from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.receipt import (
    LeakLine,
    LengthLimit,
    PackingLine,
    Reason,
    Receipt,
    StepLine,
)

LEAK_FATES: Final = {
    "report": "They stay in the training rows (data.leaks is report).",
    "drop_from_train": "They were dropped from the training rows (data.leaks is drop_from_train).",
    "fail": "They should have stopped the run (data.leaks is fail).",
}


@dataclass(frozen=True)
class FunnelStep:
    """A step with its bars, in shares of the most rows and of the most tokens that its data set ever had."""

    line: StepLine
    in_share: float
    out_share: float
    tokens_share: float

    @property
    def added_rows(self) -> int:
        """Rows that came to be in this step: one conversation cut in two, or drawn twice."""
        return max(0, self._difference)

    @property
    def lost_rows(self) -> int:
        """Rows that went without a reason: never more than 0, or the receipt does not add up."""
        return max(0, -self._difference)

    @property
    def _difference(self) -> int:
        return self.line.rows_out - self.line.rows_in + sum(reason.rows for reason in self.line.dropped)


@dataclass(frozen=True)
class Funnel:
    """A data set's way through the steps."""

    data_set: str
    steps: tuple[FunnelStep, ...]


@dataclass(frozen=True)
class LeakFigure:
    """Training rows that an evaluation set knows too, and how much of that set they touch."""

    line: LeakLine
    kinds: tuple[Reason, ...]
    touched_share: float

    @property
    def note(self) -> str:
        """What was not compared, and why; empty where everything was."""
        left_out = self.line.ngrams_left_out
        many = f"{left_out:,} runs of 13 words were not looked for: so many of these rows share them"
        return f"{many} that they are their prompt template." if left_out else ""

    @property
    def mark(self) -> Mark:
        """Good when nothing was found."""
        return "open" if any(kind.rows for kind in self.kinds) else "good"


@dataclass(frozen=True)
class LimitLine:
    """What a limit on the length would cost; `in_use` where the config sets it."""

    limit: LengthLimit
    in_use: bool


@dataclass(frozen=True)
class ShareLine:
    """A share with its name."""

    name: str
    share: float


@dataclass(frozen=True)
class LensSample:
    """A training row with its pieces ready to be drawn."""

    row_id: str
    pieces: tuple[LensPiece, ...]


@dataclass(frozen=True)
class ReceiptView:
    """A receipt with everything that its section of the page says."""

    facts: Receipt
    funnels: tuple[Funnel, ...]
    checks: tuple[CheckLine, ...]
    roles: tuple[RoleLine, ...]
    leaks: tuple[LeakFigure, ...]
    leak_fate: str
    limits: tuple[LimitLine, ...]
    packing: tuple[ShareLine, ...]
    chart: LengthChart | None
    samples: tuple[LensSample, ...]


def receipt_view(receipt: Receipt, spec: DataSpec) -> ReceiptView:
    """Work out the section of a receipt, held against the config that it was made under."""
    return ReceiptView(
        facts=receipt,
        funnels=funnels(receipt.steps),
        checks=check_lines(receipt, spec.limits),
        roles=role_lines(receipt.tokens),
        leaks=leak_figures(receipt),
        leak_fate=leak_fate(receipt.leaks, spec),
        limits=limit_lines(receipt, spec),
        packing=packing_shares(receipt.packing),
        chart=length_chart(receipt.length_histogram, receipt.lengths),
        samples=tuple(LensSample(sample.row_id, lens_pieces(sample)) for sample in receipt.samples),
    )


def funnels(steps: Sequence[StepLine]) -> tuple[Funnel, ...]:
    """Sort the steps by data set, in the order in which they are named."""
    by_set: dict[str, list[StepLine]] = {}
    for line in steps:
        by_set.setdefault(line.data_set, []).append(line)
    return tuple(Funnel(data_set, _funnel_steps(lines)) for data_set, lines in by_set.items())


def _funnel_steps(lines: Sequence[StepLine]) -> tuple[FunnelStep, ...]:
    most_rows = max(max(line.rows_in, line.rows_out) for line in lines) or 1
    most_tokens = max(line.tokens_out for line in lines) or 1
    return tuple(
        FunnelStep(line, line.rows_in / most_rows, line.rows_out / most_rows, line.tokens_out / most_tokens)
        for line in lines
    )


def leak_figures(receipt: Receipt) -> tuple[LeakFigure, ...]:
    """Set each evaluation set's leaks beside its size."""
    return tuple(
        LeakFigure(line, (line.exact_prompts, line.ngrams, line.similar), line.items_touched / max(1, line.items))
        for line in receipt.leaks
    )


def leak_fate(leaks: Sequence[LeakLine], spec: DataSpec) -> str:
    """Say what became of the rows that leak; empty where there are none."""
    found = any(kind.rows for line in leaks for kind in (line.exact_prompts, line.ngrams, line.similar))
    return LEAK_FATES[spec.leaks] if found else ""


def limit_lines(receipt: Receipt, spec: DataSpec) -> tuple[LimitLine, ...]:
    """List what each limit would cost and mark the one in use."""
    return tuple(LimitLine(limit, limit.limit_tokens == spec.max_length_tokens) for limit in receipt.length_limits)


def packing_shares(packing: PackingLine) -> tuple[ShareLine, ...]:
    """Name the shares of the capacity that hold a token: unpacked, packed, and learned ones when packed."""
    return (
        ShareLine("each row padded to the longest", packing.unpacked_efficiency),
        ShareLine("packed", packing.total_efficiency),
        ShareLine("packed, learned tokens only", packing.learned_efficiency),
    )
