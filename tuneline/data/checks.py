"""The limits that stop a run before a GPU is taken: what breaks them would teach something else than the rows say."""

from collections.abc import Iterator

from tuneline.contracts.data_spec import DataSpec
from tuneline.contracts.errors import Problem, UserError
from tuneline.data.lengths import summarise
from tuneline.data.render_chunk import ALTERED, NOT_RENDERED, NOTHING_TO_LEARN, TOO_LONG, TWO_BOS
from tuneline.data.rendering_pass import RenderedSet
from tuneline.data.stage import problems_of

SHOWN_LIMITS = 8


def check_training(train: RenderedSet, spec: DataSpec, stop_tokens: str) -> None:
    """Refuse training rows that break a limit.

    Args:
        train: the rendered training rows.
        spec: the limits.
        stop_tokens: the known stop tokens, for people.

    Raises:
        UserError: for every limit that is broken.
    """
    problems = [
        *_refused(train, spec),
        *_nothing_to_learn(train, spec),
        *_altered(train, spec),
        *_too_long(train, spec),
    ]
    if not problems and train.rows == 0:
        problems.append(Problem("no rows are left", "data", "see data.max_length_tokens and data.over_length"))
    if not problems:
        problems += _stops(train, spec, stop_tokens)
    if problems:
        raise UserError(problems)


def check_evaluation(rendered: RenderedSet, spec: DataSpec, data_set: str) -> None:
    """Refuse an evaluation set that the template cannot render, or that has no rows left.

    Raises:
        UserError: for both.
    """
    problems = [*_refused(rendered, spec), *_altered(rendered, spec)]
    if not problems and rendered.rows == 0:
        fix = "see data.max_length_tokens and data.over_length"
        problems.append(Problem(f"no rows of the {data_set} set are left", f"data.{data_set}", fix))
    if problems:
        raise UserError(problems)


def stop_share(train: RenderedSet) -> float:
    """Share of the rows whose last learned token stops the model."""
    return train.facts.ends_with_stop / train.rows


def _refused(rendered: RenderedSet, spec: DataSpec) -> Iterator[Problem]:
    reasons = (NOT_RENDERED, TWO_BOS)
    refused = sum(rendered.refused.rows.get(reason, 0) for reason in reasons)
    if refused > rendered.examples * spec.limits.max_bad_rows_share:
        what = f"{refused:,} of {rendered.examples:,} rows cannot be rendered by the chat template"
        fix = "name a template that fits these rows in model.chat_template"
        yield from problems_of(what, "model.base", rendered.refused, reasons, fix)


def _nothing_to_learn(train: RenderedSet, spec: DataSpec) -> Iterator[Problem]:
    rows = train.refused.rows.get(NOTHING_TO_LEARN, 0)
    if rows > train.examples * spec.limits.max_nothing_to_learn_share:
        what = f"{rows:,} of {train.examples:,} rows have nothing to learn"
        fix = "see data.learn and the messages' weights, or raise data.limits.max_nothing_to_learn_share"
        yield from problems_of(what, "data.learn", train.refused, (NOTHING_TO_LEARN,), fix)


def _altered(rendered: RenderedSet, spec: DataSpec) -> Iterator[Problem]:
    rows = rendered.noted.rows.get(ALTERED, 0)
    if rows > rendered.examples * spec.limits.max_altered_share:
        what = f"{rows:,} of {rendered.examples:,} rows lose some of their words in the chat template"
        fix = (
            "tool calls, tools, thoughts or whole turns may have no place in it: name a template that has one in "
            "model.chat_template, or raise data.limits.max_altered_share"
        )
        yield from problems_of(what, "model.chat_template", rendered.noted, (ALTERED,), fix)


def _too_long(train: RenderedSet, spec: DataSpec) -> Iterator[Problem]:
    learned = max(1, sum(int(part.sum()) for part in train.facts.learned_before))
    lost = train.facts.learned_too_long / learned
    if spec.over_length != "error" or lost <= spec.limits.max_lost_learned_share:
        return
    what = f"{train.too_long.total:,} rows are too long: without them {lost:.1%} of the learned tokens are lost"
    fix = _length_table(train, spec.max_length_tokens)
    yield from problems_of(what, "data.max_length_tokens", train.too_long, (TOO_LONG,), fix)


def _length_table(train: RenderedSet, limit_tokens: int) -> str:
    summary = summarise(train.lengths_before)
    lines = [
        "raise data.max_length_tokens, or choose data.over_length: drop, truncate_right, truncate_left or split",
        f"lengths: p50 {summary.p50:,}, p90 {summary.p90:,}, p95 {summary.p95:,}, p99 {summary.p99:,}, "
        f"max {summary.max:,} tokens",
        "    limit   rows over   learned tokens lost by drop, by truncate_right",
    ]
    lines += [
        f"{limit.limit_tokens:>9,} {limit.rows_over:>11,}   {limit.learned_share_lost_by_drop:>27.1%}, "
        f"{limit.learned_share_lost_by_truncate_right:.1%}"
        for limit in train.length_limits(limit_tokens)[-SHOWN_LIMITS:]
    ]
    return "\n    ".join(lines)


def _stops(train: RenderedSet, spec: DataSpec, stop_tokens: str) -> Iterator[Problem]:
    cut_on_purpose = spec.over_length in ("truncate_right", "split")
    if not cut_on_purpose and stop_share(train) < spec.limits.min_stop_share:
        yield Problem(
            f"only {stop_share(train):.1%} of the answers end with a stop token (known: {stop_tokens})",
            "model.base",
            "add the template's end-of-turn token to eos_token_id in generation_config.json: without it the served "
            "model would never stop",
        )
