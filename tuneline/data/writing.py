"""Examples to text by the chat template; an unstable conversation is written once more, unrolled."""

from dataclasses import dataclass

from tuneline.contracts.records import Example
from tuneline.data.masks import Span
from tuneline.data.rows import UnusableRow
from tuneline.data.tokenizer import ChatTokenizer
from tuneline.data.views import EVERYTHING, Unstable, View, beginnings_of, learned_spans, unrolled, views_of


@dataclass(frozen=True, slots=True)
class Written:
    """A view written out, with its learned characters."""

    view: View
    text: str
    spans: tuple[Span, ...]


Outcome = list[Written] | UnusableRow
"""The texts of an example (two of a preference pair, one per answer when unrolled), or why there are none."""


def write_out(tokenizer: ChatTokenizer, example: Example, learn: str) -> Outcome:
    """Write an example out; plain text stands for itself, an unstable conversation is unrolled."""
    if example.text is not None:
        return [Written(View((), None, EVERYTHING), example.text, (Span(0, len(example.text)),))]
    views = views_of(example, learn)
    try:
        return _written(tokenizer, views)
    except UnusableRow as error:
        return error
    except Unstable as error:
        return _unrolled(tokenizer, views, error)


def _unrolled(tokenizer: ChatTokenizer, views: list[View], unstable: Unstable) -> Outcome:
    try:
        if len(views) > 1:
            raise UnusableRow(f"the chat template rewrites earlier turns of a pair: {unstable}")
        return _written(tokenizer, unrolled(views[0], unstable))
    except UnusableRow as error:
        return error
    except Unstable as error:
        return UnusableRow(f"the chat template writes the prompt otherwise when its answer follows: {error}")


def _written(tokenizer: ChatTokenizer, views: list[View]) -> list[Written]:
    written = []
    for view in views:
        texts = tokenizer.write_out(view.messages, view.tools, beginnings_of(view))
        spans = learned_spans(view, texts)
        written.append(Written(view, str(texts[0]), spans))
    return written
