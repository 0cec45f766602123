"""The promotion decision: a pure function of the answers and of a policy that was written down before they were known.

Each check holds an interval against a bound: wholly above it passes, wholly below it rejects, and an interval that
contains the bound is inconclusive. A model is promoted only when every check passes. Such an intersection-union test
needs no correction for the number of checks (Berger 1982, Technometrics 24, 295-300): to be promoted wrongly, a model
must pass the one check that it truly fails, which happens with probability (1 - confidence) / 2 however many checks
stand beside it. Holm's correction would only keep more good models back.

Retention is held against the base alone. Held against the champion, each generation could lose one margin more of what
the base knew and none would be rejected; the base stays where it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluation.intervals import Measured, PairedLoss, PairedShares, Share, items_to_settle
from evaluation.items import BASE, CANDIDATE, CHAMPION, RETENTION, TARGET, ItemResult
from tuneline.contracts.artifacts import Check, EvalReport, Outcome, Verdict
from tuneline.contracts.errors import Problem, UserError
from tuneline.contracts.spec import GateSpec

NAMED_ROWS = 5
"""Rows that an error names; the rest is counted."""
LABELS = {"exact_match": "exact match", "json_validity": "JSON validity", "held_out_loss": "held-out loss"}

Answers = Mapping[str, ItemResult]
"""One model's results on one suite, by row."""
AllAnswers = Mapping[tuple[str, str], Answers]
"""Those of every suite and model, by `(suite, model)`."""


@dataclass(frozen=True)
class _Question:
    """A check before it is answered: `needed` and `missed` end the sentence that `finding` begins."""

    name: str
    text: str
    measured: Measured
    bound: float
    finding: str
    needed: str
    missed: str


def decide(report: EvalReport, items: Sequence[ItemResult], policy: GateSpec) -> Verdict:
    """Promote, reject, or say how many items are missing.

    Args:
        report: names the champion's version.
        items: every model's result on every item, as `read_items` gives them.
        policy: the `gate` section of the config.

    Returns:
        REJECT when any check rejects, else INCONCLUSIVE when any check is, else PROMOTE; with one sentence per check,
        and one more when the run has no retention suite.

    Raises:
        UserError: the models were not asked the same things, or there is nothing to compare; names the rows.
    """
    answers = _by_suite_and_model(items)
    _refuse_unequal(answers, report)
    checks = tuple(_answer(question, policy.confidence) for question in _questions(answers, report, policy))
    reasons = [check.reason for check in checks]
    if (RETENTION, CANDIDATE) not in answers:
        reasons.append("Forgetting was not checked: the run has no retention suite (data.retention).")
    return Verdict(
        outcome=_overall(checks), checks=checks, reasons=tuple(reasons), champion_version=report.champion_version
    )


def _overall(checks: Sequence[Check]) -> Outcome:
    outcomes = {check.outcome for check in checks}
    return next(worst for worst in (Outcome.REJECT, Outcome.INCONCLUSIVE, Outcome.PROMOTE) if worst in outcomes)


def _answer(question: _Question, confidence: float) -> Check:
    interval = question.measured.interval(confidence)
    outcome, missing = Outcome.INCONCLUSIVE, 0
    if interval.low > question.bound:
        outcome, ending = Outcome.PROMOTE, f"; {question.needed}."
    elif interval.high <= question.bound:
        outcome, ending = Outcome.REJECT, f": {question.missed}."
    else:
        total = items_to_settle(question.measured, question.bound, confidence)
        missing = max(total - question.measured.items, 1) if total else 0
        settles = (
            f"about {missing:,} more items like these would" if missing else "at this estimate no number of items would"
        )
        ending = f"; {question.needed}, which the interval leaves open ({settles} settle it)."
    return Check(
        name=question.name,
        question=question.text,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        bound=question.bound,
        items=question.measured.items,
        outcome=outcome,
        reason=question.finding + ending,
        missing_items=missing,
    )


def _questions(answers: AllAnswers, report: EvalReport, policy: GateSpec) -> Iterator[_Question]:
    yield _better(answers, BASE, "the base model", policy)
    if (TARGET, CHAMPION) in answers:
        version = report.champion_version
        yield _better(answers, CHAMPION, f"champion version {version}" if version else "the champion", policy)
    if (RETENTION, CANDIDATE) in answers:
        yield _retained(answers, policy)
    if policy.min_json_validity is not None:
        yield _valid_json(answers[TARGET, CANDIDATE], policy.min_json_validity, policy.confidence)


def _better(answers: AllAnswers, other: str, label: str, policy: GateSpec) -> _Question:
    """Ask whether the candidate is better than another model on the policy's metric."""
    ours, theirs = answers[TARGET, CANDIDATE], answers[TARGET, other]
    measured: Measured
    if policy.metric == "held_out_loss":
        measured, finding = _compare_losses(ours, theirs, label, policy.confidence)
        least = f"{policy.min_improvement:g} nats per token"
    else:
        measured, finding = _compare_shares(ours, theirs, label, policy.metric, "held-out", policy.confidence)
        least = f"{100 * policy.min_improvement:.1f} points"
    least = f"more than {least}" if policy.min_improvement else "more than 0"
    return _Question(
        name=f"{TARGET} vs {other}",
        text=f"Is the candidate better than {label} on {LABELS[policy.metric]}?",
        measured=measured,
        bound=policy.min_improvement,
        finding=finding,
        needed=f"needed: {least}",
        missed=f"short of what is needed, {least}",
    )


def _retained(answers: AllAnswers, policy: GateSpec) -> _Question:
    """Ask whether the candidate lost less than the margin of what the base could do."""
    ours, theirs = answers[RETENTION, CANDIDATE], answers[RETENTION, BASE]
    measured, finding = _compare_shares(ours, theirs, "the base model", "exact_match", RETENTION, policy.confidence)
    allowed = f"{100 * policy.retention_margin:.1f} points"
    return _Question(
        name=RETENTION,
        text="Does the candidate still do what the base model could?",
        measured=measured,
        bound=-policy.retention_margin,
        finding=finding,
        needed=f"allowed: a loss of less than {allowed}",
        missed=f"more than the {allowed} allowed",
    )


def _valid_json(ours: Answers, least: float, confidence: float) -> _Question:
    """Ask whether enough of the candidate's answers parse."""
    values = [_score(item, "json_validity") for item in _scored(ours, "json_validity")]
    measured = Share(sum(values), len(values))
    interval = measured.interval(confidence)
    return _Question(
        name="json validity",
        text="Do the candidate's answers parse as JSON?",
        measured=measured,
        bound=least,
        finding=(
            f"{_percent(interval.estimate)} of {measured.items:,} answers parse as JSON"
            f" ({100 * confidence:g} % interval {100 * interval.low:.1f} to {_percent(interval.high)})"
        ),
        needed=f"needed: more than {_percent(least)}",
        missed=f"short of what is needed, more than {_percent(least)}",
    )


def _compare_shares(
    ours: Answers, theirs: Answers, label: str, metric: str, suite: str, confidence: float
) -> tuple[PairedShares, str]:
    """Count the items that tell two models apart, and say what was found."""
    pairs = [(_score(item, metric), _score(theirs[item.row_id], metric)) for item in _scored(ours, metric)]
    measured = PairedShares(pairs.count((True, False)), pairs.count((False, True)), len(pairs))
    before = sum(right for _, right in pairs) / len(pairs)
    after = sum(right for right, _ in pairs) / len(pairs)
    found = measured.interval(confidence)
    return measured, (
        f"{LABELS[metric]} on {len(pairs):,} {suite} items {_moved(before, after)} {label}'s {_percent(before)}"
        f" to {_percent(after)} ({100 * found.estimate:+.1f} points,"
        f" {100 * confidence:g} % interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )


def _compare_losses(ours: Answers, theirs: Answers, label: str, confidence: float) -> tuple[PairedLoss, str]:
    """Measure the loss that the candidate saves per answer token, and say what was found."""
    tokens = [item.answer_tokens for item in ours.values()]
    if len(ours) < 2 or not sum(tokens):
        raise UserError.of(
            f"{len(ours)} held-out item(s) cannot give an interval of the loss", TARGET, "hold out more rows"
        )
    measured = PairedLoss.between([theirs[row].nll - item.nll for row, item in ours.items()], tokens)
    before, after = (sum(item.nll for item in model.values()) / sum(tokens) for model in (theirs, ours))
    found = measured.interval(confidence)
    return measured, (
        f"{LABELS['held_out_loss']} on {len(ours):,} held-out items {_moved(before, after)} {label}'s {before:.3f}"
        f" to {after:.3f} nats per token (improvement {found.estimate:+.3f},"
        f" {100 * confidence:g} % interval {found.low:+.3f} to {found.high:+.3f})"
    )


def _scored(answers: Answers, metric: str) -> list[ItemResult]:
    """List a suite's items, of which each must have the metric."""
    unscored = [row for row, item in answers.items() if metric not in item.metrics]
    if unscored:
        suite = answers[unscored[0]].suite
        raise UserError.of(
            f"{len(unscored):,} answers were not scored for {metric}, which the gate needs",
            _where(suite, unscored),
            f"set evaluation.generate and name {metric} in evaluation.metrics",
        )
    return list(answers.values())


def _score(item: ItemResult, metric: str) -> bool:
    return item.metrics[metric] >= 0.5


def _by_suite_and_model(items: Iterable[ItemResult]) -> AllAnswers:
    answers: dict[tuple[str, str], dict[str, ItemResult]] = {}
    for item in items:
        answers.setdefault((item.suite, item.model), {})[item.row_id] = item
    return answers


def _refuse_unequal(answers: AllAnswers, report: EvalReport) -> None:
    """Raise unless every model was asked what the candidate was, on every suite."""
    wanted = {(TARGET, CANDIDATE), (TARGET, BASE)}
    if report.champion_version:
        wanted.add((TARGET, CHAMPION))
    for suite in {suite for suite, _ in answers}:
        wanted |= {(suite, CANDIDATE), (suite, BASE)}
    problems = [
        Problem(f"there are no results of {model} on the {suite} suite", fix="run the evaluation again")
        for suite, model in sorted(wanted - answers.keys())
    ]
    for (suite, model), theirs in answers.items():
        problems += _differences(suite, model, answers.get((suite, CANDIDATE), {}), theirs)
    if problems:
        raise UserError(problems)


def _differences(suite: str, model: str, ours: Answers, theirs: Answers) -> Iterator[Problem]:
    if unpaired := sorted(ours.keys() ^ theirs.keys()):
        yield Problem(
            f"{len(unpaired):,} items were answered by only one of candidate and {model}",
            _where(suite, unpaired),
            "evaluate all models on the same items, in one run",
        )
    if unequal := [row for row in ours if row in theirs and _asked(ours[row]) != _asked(theirs[row])]:
        yield Problem(
            f"candidate and {model} were not asked the same on {len(unequal):,} items",
            _where(suite, unequal),
            "prompt, expected answer or scores differ: evaluate all models with one template and tokenizer, in one run",
        )


def _asked(item: ItemResult) -> tuple[str, str, int, frozenset[str]]:
    return item.prompt_sha256, item.expected, item.answer_tokens, frozenset(item.metrics)


def _where(suite: str, rows: Sequence[str]) -> str:
    more = f" and {len(rows) - NAMED_ROWS:,} more" if len(rows) > NAMED_ROWS else ""
    return f"{suite} suite, {', '.join(rows[:NAMED_ROWS])}{more}"


def _moved(before: float, after: float) -> str:
    if after == before:
        return "stayed, from"
    return "rose from" if after > before else "fell from"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
