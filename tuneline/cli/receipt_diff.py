"""What differs between two receipts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tuneline.cli.receipt_lens import CLOSING, OPENING, STOP_SIGN
from tuneline.contracts.artifacts import Record
from tuneline.contracts.receipt import LeakLine, Reason, Receipt, Sample, SourceLine, StepLine

Value = int | float | str | bool | tuple[str, ...] | None
"""A count, a share (every float of a receipt is one), a text, row ids, or None where a receipt has no such fact."""


@dataclass(frozen=True)
class Fact:
    """One figure or text of a receipt, in words."""

    section: str
    name: str
    value: Value


@dataclass(frozen=True)
class Difference:
    """A fact that two receipts do not share; None where one of them does not have it."""

    section: str
    name: str
    a: Value
    b: Value


def compare_receipts(a: Receipt, b: Receipt) -> tuple[Difference, ...]:
    """List every fact that differs, section by section; the order of a receipt's lines is no fact."""
    facts_a, facts_b = _by_name(_facts(a)), _by_name(_facts(b))
    sections = {section: None for section, _ in (*facts_a, *facts_b)}
    keys = dict.fromkeys((*facts_a, *facts_b))
    return tuple(
        Difference(*key, facts_a.get(key), facts_b.get(key))
        for section in sections
        for key in keys
        if key[0] == section and facts_a.get(key) != facts_b.get(key)
    )


def _by_name(facts: Iterable[Fact]) -> dict[tuple[str, str], Value]:
    """Index the facts; a name that comes again (a row made into two samples) is numbered."""
    found: dict[tuple[str, str], Value] = {}
    for fact in facts:
        name, times = fact.name, 1
        while (fact.section, name) in found:
            times += 1
            name = f"{fact.name} ({times})"
        found[fact.section, name] = fact.value
    return found


def _facts(receipt: Receipt) -> Iterator[Fact]:
    yield Fact("run", "kind", receipt.kind)
    yield Fact("run", "seed", receipt.seed)
    yield from _source_facts(receipt.sources)
    yield from _fields("rows", receipt.rows)
    yield Fact("tokens", "train", receipt.tokens.train)
    yield Fact("tokens", "learned", receipt.tokens.learned)
    yield from (Fact("tokens", role, count) for role, count in receipt.tokens.by_role.items())
    yield from (Fact("tokens", f"{role}, learned", count) for role, count in receipt.tokens.learned_by_role.items())
    yield from _step_facts(receipt.steps)
    yield from _fields("checks", receipt.checks)
    yield from _leak_facts(receipt.leaks)
    yield from _length_facts(receipt)
    yield from _fields("packing", receipt.packing)
    yield from _fields("template", receipt.template)
    yield from (Fact("samples", sample.row_id, marked_text(sample)) for sample in receipt.samples)


def _fields(section: str, record: Record, before: str = "") -> Iterator[Fact]:
    for name, value in record:
        yield Fact(section, f"{before}{name.replace('_', ' ')}", value)


def _source_facts(sources: Sequence[SourceLine]) -> Iterator[Fact]:
    for source in sources:
        name = f"{source.data_set}, {source.path}"
        yield Fact("sources", f"{name}: rows", source.rows_read)
        yield Fact("sources", f"{name}: files", source.files)
        yield Fact("sources", f"{name}: identity", source.identity)
        yield from (Fact("sources", f"{name}: rows of {kind}", rows) for kind, rows in source.formats.items())


def _step_facts(steps: Sequence[StepLine]) -> Iterator[Fact]:
    for step in steps:
        name = f"{step.data_set}, {step.step}"
        yield Fact("steps", f"{name}: rows in", step.rows_in)
        yield Fact("steps", f"{name}: rows out", step.rows_out)
        yield Fact("steps", f"{name}: {'estimated ' if step.tokens_estimated else ''}tokens", step.tokens_out)
        for section, reasons in (("left out", step.dropped), ("noted", step.noted)):
            yield from (fact for reason in reasons for fact in _reason_facts(section, name, reason))


def _reason_facts(section: str, name: str, reason: Reason) -> Iterator[Fact]:
    yield Fact(section, f"{name}: {reason.reason}", reason.rows)
    yield Fact(section, f"{name}: {reason.reason}, first rows", reason.examples)


def _leak_facts(leaks: Sequence[LeakLine]) -> Iterator[Fact]:
    for leak in leaks:
        yield Fact("leaks", f"{leak.data_set}: items", leak.items)
        yield Fact("leaks", f"{leak.data_set}: items touched", leak.items_touched)
        yield Fact("leaks", f"{leak.data_set}: runs of words left out", leak.ngrams_left_out)
        for kind in ("exact_prompts", "ngrams", "similar"):
            yield from _reason_facts("leaks", f"{leak.data_set}, {kind.replace('_', ' ')}", getattr(leak, kind))


def _length_facts(receipt: Receipt) -> Iterator[Fact]:
    yield from _fields("lengths", receipt.lengths)
    for one in receipt.length_histogram:
        yield Fact("lengths", f"rows of {one.from_tokens:,} to {one.to_tokens:,} tokens", one.rows)
    for limit in receipt.length_limits:
        before = f"a limit of {limit.limit_tokens:,}: "
        yield from (fact for fact in _fields("lengths", limit, before) if not fact.name.endswith("limit tokens"))


def marked_text(sample: Sample) -> str:
    """Write a sample whole, learned pieces between brackets and stop tokens marked."""
    return "".join(
        f"{OPENING if piece.learned else ''}{piece.text}{STOP_SIGN if piece.stop else ''}"
        f"{CLOSING if piece.learned else ''}"
        for piece in sample.pieces
    )
