"""What of a conversation is rendered, which prefixes show where its learned turns are, and what to do when they do not.

Pure: the chat template is applied elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.contracts.records import Example, Message
from tuneline.data.masks import Span
from tuneline.data.rows import UnusableRow
from tuneline.data.tokenizer import Beginning

SHOWN_CHARACTERS = 40
"""Text after the place where two renderings part, in an error."""

ASKED = "asked"
"""What is learned of an evaluation's row, where no `data.learn` and no weight counts: the answer that ends it."""
EVERYTHING = None
"""`View.learned` when no message is left out: the whole text is learned, the template's own words too."""


@dataclass(frozen=True, slots=True)
class View:
    """A conversation (or a beginning of one), and the numbers of the messages that are learned."""

    messages: tuple[Message, ...]
    tools: str | None
    learned: tuple[int, ...] | None


class Unstable(Exception):
    """The template writes a beginning of the conversation otherwise when more follows."""


def views_of(example: Example, learn: str) -> list[View]:
    """Choose what is learned: of a conversation by `learn`, of a pair the turns after its common prompt.

    A label is on the last answer, so that the turns before it are no part of what is judged.
    """
    if example.kind == "text":
        return []
    if example.kind == "unpaired_preference":
        return [View(example.messages, example.tools, learned_messages(example.messages, ASKED))]
    if example.kind != "preference":
        return [View(example.messages, example.tools, learned_messages(example.messages, learn))]
    prompt = _prompt_length(example)
    worse = (*example.messages[:prompt], *example.rejected)
    return [
        View(messages, example.tools, tuple(range(prompt, len(messages)))) for messages in (example.messages, worse)
    ]


def learned_messages(messages: Sequence[Message], learn: str) -> tuple[int, ...] | None:
    """Number the messages that are learned: by `learn`, unless a message's own weight says otherwise.

    An assistant turn that opens a conversation answers nothing, so only a weight makes it learned.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant" and index > 0]
    if learn == ASKED:
        return tuple(answers[-1:]) if messages[-1].role == "assistant" else ()
    every = range(len(messages))
    chosen = {"assistant": answers, "last_assistant": answers[-1:], "all": every}[learn]
    weights = {index: message.weight for index, message in enumerate(messages) if message.weight is not None}
    learned = tuple([index for index in every if weights.get(index, index in chosen)]) if weights else tuple(chosen)
    return EVERYTHING if learn == "all" and len(learned) == len(messages) else learned


def beginnings_of(view: View) -> list[Beginning]:
    """List what the template must write out: the whole, then the text before and after each learned message."""
    beginnings = [Beginning(len(view.messages), asks=False)]
    for index in view.learned or ():
        if index > 0:
            beginnings.append(Beginning(index, asks=view.messages[index].role == "assistant"))
        if index + 1 < len(view.messages):
            beginnings.append(Beginning(index + 1, asks=False))
    return beginnings


def learned_spans(view: View, texts: Sequence[str | Exception]) -> tuple[Span, ...]:
    """Find the learned characters in `texts[0]`; `texts` are those of `beginnings_of(view)`.

    Raises:
        UnusableRow: the template refuses the conversation.
        Unstable: it writes a beginning otherwise when more follows.
    """
    written: list[str] = []
    for text in texts:
        if isinstance(text, Exception):
            raise UnusableRow(f"the chat template refuses it: {text}")
        written.append(text)
    whole, rest = written[0], iter(written[1:])
    if view.learned is EVERYTHING:
        return (Span(0, len(whole)),)
    spans = []
    for index in view.learned:
        before = next(rest) if index > 0 else ""
        after = next(rest) if index + 1 < len(view.messages) else whole
        for beginning in (before, after):
            if not whole.startswith(beginning):
                raise Unstable(_difference(beginning, whole))
        spans.append(Span(len(before), len(after)))
    return tuple(spans)


def unrolled(view: View, unstable: Unstable) -> list[View]:
    """Make one view per learned message, each ending with it: as it is when the model is asked for it.

    Raises:
        UnusableRow: the view ends with its only learned message already, so the template changes the prompt itself.
    """
    views = [View(view.messages[: index + 1], view.tools, (index,)) for index in view.learned or ()]
    if views == [view]:
        raise UnusableRow(f"the chat template writes the prompt otherwise when its answer follows: {unstable}")
    return views


def _prompt_length(example: Example) -> int:
    """Messages that a pair shares: all before the answers at the end of its better conversation."""
    others = [index for index, message in enumerate(example.messages) if message.role != "assistant"]
    return others[-1] + 1


def _difference(beginning: str, whole: str) -> str:
    """Show where two texts part."""
    at = next((i for i, (a, b) in enumerate(zip(beginning, whole, strict=False)) if a != b), len(whole))
    shown = [text[max(0, at - 10) : at + SHOWN_CHARACTERS] for text in (beginning, whole)]
    return f"{shown[0]!r} becomes {shown[1]!r}"
