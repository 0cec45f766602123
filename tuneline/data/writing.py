"""Examples to text: the chat template is applied to whole chunks, and unstable conversations once more, unrolled."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tuneline.contracts.records import Example
from tuneline.data.masks import Span
from tuneline.data.rows import UnusableRow
from tuneline.data.tokenizer import ChatTokenizer
from tuneline.data.views import EVERYTHING, Unstable, View, learned_spans, prompts_of, unrolled, views_of


@dataclass(frozen=True, slots=True)
class Written:
    """A view written out, with its learned characters."""

    view: View
    text: str
    spans: tuple[Span, ...]


Outcome = list[Written] | UnusableRow
"""The texts of an example (two of a preference pair, one per answer when unrolled), or why there are none."""


def write_out(tokenizer: ChatTokenizer, examples: Sequence[Example], learn: str) -> list[Outcome]:
    """Write out examples, in order; plain text stands for itself."""
    views = [views_of(example, learn) for example in examples]
    outcomes = _attempt(tokenizer, views)
    unstable = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Unstable)}
    retried = {index: _unroll(views[index], why) for index, why in unstable.items()}
    again = {index: found for index, found in retried.items() if not isinstance(found, UnusableRow)}
    second = dict(zip(again, _attempt(tokenizer, list(again.values())), strict=True))
    final = [second.get(index, retried.get(index, outcome)) for index, outcome in enumerate(outcomes)]
    return [
        _settled(outcome) if example.text is None else [_plain(example.text)]
        for example, outcome in zip(examples, final, strict=True)
    ]


def _plain(text: str) -> Written:
    return Written(View((), None, EVERYTHING), text, (Span(0, len(text)),))


def _attempt(tokenizer: ChatTokenizer, views: Sequence[list[View]]) -> list[list[Written] | UnusableRow | Unstable]:
    prompts = [[prompts_of(view) for view in of_example] for of_example in views]
    flat = [prompt for of_example in prompts for of_view in of_example for prompt in of_view]
    texts = iter(tokenizer.write_out(flat))
    return [
        _resolve([(view, list(islice(texts, len(of_view)))) for view, of_view in zip(*pair, strict=True)])
        for pair in zip(views, prompts, strict=True)
    ]


def _resolve(of_example: list[tuple[View, list[str | Exception]]]) -> list[Written] | UnusableRow | Unstable:
    try:
        return [Written(view, str(texts[0]), learned_spans(view, texts)) for view, texts in of_example]
    except (UnusableRow, Unstable) as error:
        return error


def _unroll(views: list[View], unstable: Unstable) -> list[View] | UnusableRow:
    try:
        if len(views) > 1:
            raise UnusableRow(f"the chat template rewrites earlier turns of a pair: {unstable}")
        return unrolled(views[0], unstable)
    except UnusableRow as error:
        return error


def _settled(outcome: list[Written] | list[View] | UnusableRow | Unstable) -> Outcome:
    if isinstance(outcome, Unstable):
        return UnusableRow(f"the chat template writes the prompt otherwise when its answer follows: {outcome}")
    if isinstance(outcome, UnusableRow):
        return outcome
    return [written for written in outcome if isinstance(written, Written)]
