"""Conversations longer than the limit: refused, dropped or cut, as the config says, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneline.contracts.artifacts import LengthSummary
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.records import IGNORED_LABEL
from tuneline.contracts.spec import DataSpec
from tuneline.data.rendering import Rendered

SHOWN_ROWS = 5


@dataclass(frozen=True)
class Fitted:
    """Rows within the limit, and the names of those that were cut or dropped."""

    rows: list[Rendered]
    cut: list[str]
    dropped: list[str]


def fit_lengths(rows: Sequence[Rendered], spec: DataSpec) -> Fitted:
    """Apply `data.over_length` to rows longer than `data.max_length_tokens`.

    Raises:
        UserError: under the policy `error`, with the rows' names and what each choice would cost.
    """
    limit = spec.max_length_tokens
    over = [row for row in rows if len(row.input_ids) > limit]
    if over and spec.over_length == "error":
        raise UserError(_too_long(rows, over, limit))
    if spec.over_length == "drop":
        kept = [row for row in rows if len(row.input_ids) <= limit]
        return Fitted(kept, [], [row.row_id for row in over])
    fitted = [_truncate(row, limit, spec.over_length) for row in rows]
    dropped = [row.row_id for row in fitted if row.learned_tokens == 0]
    kept = [row for row in fitted if row.learned_tokens > 0]
    return Fitted(kept, [row.row_id for row in over if row.row_id not in set(dropped)], dropped)


def summarise(lengths: Sequence[int]) -> LengthSummary:
    """Compute the percentiles of lengths in tokens (nearest rank)."""
    ordered = sorted(lengths)
    at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99)}
    return LengthSummary(p50=at[0.5], p90=at[0.9], p99=at[0.99], max=ordered[-1])


def _truncate(row: Rendered, limit: int, side: str) -> Rendered:
    excess = len(row.input_ids) - limit
    if excess <= 0:
        return row
    if side == "truncate_left":
        return replace(
            row,
            input_ids=row.input_ids[excess:],
            labels=row.labels[excess:],
            prompt_length_tokens=max(0, row.prompt_length_tokens - excess),
            answer_end=row.answer_end - excess,
        )
    return replace(
        row, input_ids=row.input_ids[:limit], labels=row.labels[:limit], answer_end=min(row.answer_end, limit)
    )


def _too_long(rows: Sequence[Rendered], over: Sequence[Rendered], limit: int) -> list[Problem]:
    longest = sorted(over, key=lambda row: -len(row.input_ids))
    problems = [
        Problem(f"{len(row.input_ids):,} tokens, the limit is {limit:,}", row.row_id) for row in longest[:SHOWN_ROWS]
    ]
    if len(over) > SHOWN_ROWS:
        problems.append(Problem(f"and {len(over) - SHOWN_ROWS:,} more rows over the limit"))
    learned = sum(row.learned_tokens for row in rows)
    lost = sum(sum(label != IGNORED_LABEL for label in row.labels[limit:]) for row in over)
    whole = sum(row.learned_tokens for row in over)
    summary = summarise([len(row.input_ids) for row in rows])
    fix = (
        f"lengths are p50 {summary.p50:,}, p90 {summary.p90:,}, p99 {summary.p99:,}, max {summary.max:,}: raise "
        f"data.max_length_tokens, or set data.over_length to drop (loses {whole / learned:.1%} of the learned tokens) "
        f"or truncate_right (loses {lost / learned:.1%})"
    )
    return [*problems, Problem(f"{len(over):,} of {len(rows):,} rows are too long", "data.max_length_tokens", fix)]
