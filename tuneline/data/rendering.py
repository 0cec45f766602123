"""Examples to token ids and loss masks, for any chat template.

Which characters are learned is found by rendering message prefixes and comparing texts: an assistant turn is what it
adds to the prompt before it. No template needs a `generation` marker. Where a template rewrites earlier turns as a
conversation grows (Qwen3 drops their thoughts), the conversation becomes one row per answer, each as it is when the
model is asked for that answer; a template that changes the very prompt it answers is refused, with the place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.records import IGNORED_LABEL, Example
from tuneline.data.masks import Span, Turn, after_stops, find_turns, in_tokens, mask_spans
from tuneline.data.rows import UnusableRow
from tuneline.data.tokenizer import ChatTokenizer
from tuneline.data.views import ASKED, EVERYTHING
from tuneline.data.writing import Outcome, Written, write_out

TEXT_ROLE = "text"
"""Whose words plain text is."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with labels of the same length; the last learned run is `ids[answer_start:answer_end]`."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    answer_start: int
    answer_end: int

    @property
    def learned(self) -> int:
        """Number of tokens that carry a label."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row ready for training, and what the receipt wants to know of it."""

    row_id: str
    example: Example
    tokens: Tokens
    rejected: Tokens | None = None
    turns: tuple[Turn, ...] = ()
    """Whose words the tokens are."""
    merged_borders: int = 0
    altered: bool = False
    """Some of the example's words are not in the text as they were written."""
    unrolled: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """An example that cannot be rendered, and why."""

    row_id: str
    why: str


class Renderer:
    """Renders examples with one tokenizer under one policy of what is learned."""

    def __init__(self, tokenizer: ChatTokenizer, learn: str) -> None:
        """Use `learn` (`data.learn`) for messages that say nothing themselves."""
        self.tokenizer, self._learn, self._stops = tokenizer, learn, tokenizer.stop_token_ids

    def render(self, examples: Sequence[Example]) -> list[Rendered | Refused]:
        """Render examples for training, in order; an unstable conversation becomes one row per answer."""
        outcomes = [write_out(self.tokenizer, example, self._learn) for example in examples]
        written = [
            (example, one)
            for example, outcome in zip(examples, outcomes, strict=True)
            if not isinstance(outcome, UnusableRow)
            for one in outcome
        ]
        made = iter(self._rows(written))
        rows: list[Rendered | Refused] = []
        for example, outcome in zip(examples, outcomes, strict=True):
            if isinstance(outcome, UnusableRow):
                rows.append(Refused(example.row_id, str(outcome)))
            else:
                rows += _of_example(example, [next(made) for _ in outcome])
        return rows

    def render_items(self, examples: Sequence[Example]) -> list[Rendered | Refused]:
        """Render examples for evaluation, one row each: the last answer is asked for.

        Prompt and answer are tokenised apart, as they are when a server reads the one and writes the other.
        """
        outcomes = [_asked(write_out(self.tokenizer, example, ASKED)) for example in examples]
        tokenized = self.tokenizer.encode([half for one in _all_written(outcomes) for half in _halves(one)])
        ids = map(tokenized.ids_of, range(len(tokenized)))
        rows: list[Rendered | Refused] = []
        for example, outcome in zip(examples, outcomes, strict=True):
            if isinstance(outcome, UnusableRow):
                rows.append(Refused(example.row_id, str(outcome)))
            else:
                tokens = [self._of_halves(example, next(ids), next(ids)) for _ in outcome]
                altered = any(find_turns(one.text, one.view.messages) is None for one in outcome)
                rows.append(Rendered(example.row_id, example, tokens[0], _second(tokens), altered=altered))
        return rows

    def _rows(self, written: Sequence[tuple[Example, Written]]) -> Iterator[Rendered]:
        """Tokenise texts and label what is learned, all of them at once."""
        tokenized = self.tokenizer.encode([one.text for _, one in written])
        # Where everything is learned, users' turns end with stop tokens too.
        stopping = np.array([one.view.learned is not EVERYTHING for _, one in written], dtype=np.bool_)
        masks = mask_spans(tokenized, [one.spans for _, one in written], self._stops, stopping)
        found = [find_turns(one.text, one.view.messages) for _, one in written]
        turns = in_tokens([of_text or () for of_text in found], tokenized)
        runs = zip(masks.last_starts.tolist(), masks.last_ends.tolist(), masks.merged_borders.tolist(), strict=True)
        for text, ((example, _), (start, end, merged)) in enumerate(zip(written, runs, strict=True)):
            ids = tokenized.ids_of(text)
            if example.text is not None:
                yield self._of_document(example, ids)
                continue
            labels = masks.labels[tokenized.tokens[text] : tokenized.tokens[text + 1]]
            tokens = Tokens(ids, labels, start, end)
            yield Rendered(example.row_id, example, tokens, None, turns[text], merged, found[text] is None)

    def _of_document(self, example: Example, ids: NDArray[np.int32]) -> Rendered:
        tokens = self._of_text(ids)
        return Rendered(example.row_id, example, tokens, None, (Turn(TEXT_ROLE, Span(0, len(tokens.ids))),))

    def _of_text(self, ids: NDArray[np.int32]) -> Tokens:
        """Put the tokenizer's own opening before a document and its EOS after it; the opening is not learned."""
        bos, eos = self.tokenizer.opening_token_ids, self.tokenizer.tokenizer.eos_token_id
        whole = np.array([*bos, *ids, eos], dtype=np.int32)
        labels = whole.copy()
        labels[: len(bos)] = IGNORED_LABEL
        return Tokens(whole, labels, len(bos), len(whole))

    def _of_halves(self, example: Example, prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> Tokens:
        if example.text is not None:
            tokens = self._of_text(answer)
            start = max(1, tokens.answer_start)  # the first token cannot be foretold from nothing
            labels = np.where(np.arange(len(tokens.ids)) < start, IGNORED_LABEL, tokens.labels)
            return Tokens(tokens.ids, labels.astype(np.int32), start, tokens.answer_end)
        ids = np.concatenate([prompt, answer])
        start, whole = len(prompt), len(prompt) + len(answer)
        end = int(after_stops(ids, np.array([start]), np.array([whole]), self._stops)[0])
        labels = np.full(whole, IGNORED_LABEL, dtype=np.int32)
        labels[start:end] = ids[start:end]
        return Tokens(ids, labels, start, end)


def _of_example(example: Example, rows: list[Rendered]) -> list[Rendered]:
    """Make one row of a pair, and number the rows of an unrolled conversation."""
    if example.kind == "preference":
        better, worse = rows
        return [replace(better, rejected=worse.tokens, altered=better.altered or worse.altered)]
    if len(rows) == 1:
        return rows
    return [replace(row, row_id=f"{row.row_id}/{n}", unrolled=True) for n, row in enumerate(rows, start=1)]


def _all_written(outcomes: Sequence[Outcome]) -> list[Written]:
    return [written for outcome in outcomes if not isinstance(outcome, UnusableRow) for written in outcome]


def _asked(outcome: Outcome) -> Outcome:
    """Refuse a row that asks nothing: one without an answer after a prompt."""
    if isinstance(outcome, UnusableRow) or all(written.spans for written in outcome):
        return outcome
    return UnusableRow("it asks nothing: there is no answer after a prompt")


def _halves(written: Written) -> tuple[str, str]:
    start = written.spans[-1].start
    return written.text[:start], written.text[start:]


def _second(tokens: Sequence[Tokens]) -> Tokens | None:
    return tokens[1] if len(tokens) > 1 else None
