"""Pairs of a better and a worse answer to one prompt."""

from typing import NamedTuple

from tuneline.contracts.records import Message
from tuneline.data.formats.conversation import Messages, Values, read_answer, read_prompt
from tuneline.data.formats.detect import Layout
from tuneline.data.formats.turns import read_turns, turn_list
from tuneline.data.rows import UnusableRow


class Pair(NamedTuple):
    """What both conversations share, and how each goes on: assistant turns only."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


def read_pair(values: Values, layout: Layout) -> Pair:
    """Read a pair with its prompt in a column of its own, or as the common beginning of two conversations.

    Raises:
        UnusableRow: there is no prompt, the answers are the same, or they go on in more than assistant turns.
    """
    assert layout.chosen is not None and layout.rejected is not None
    chosen, rejected = (read_answer(values.get(column), column) for column in (layout.chosen, layout.rejected))
    prompt = _explicit_prompt(values, layout)
    if prompt is None or (chosen[0].role, rejected[0].role) != ("assistant", "assistant"):
        prompt, chosen, rejected = _part(chosen, rejected, prompt)
    elif chosen == rejected:
        raise UnusableRow("chosen and rejected are the same")
    return _checked(_answers_together(prompt, chosen, rejected))


def _explicit_prompt(values: Values, layout: Layout) -> Messages | None:
    if layout.messages is not None:
        return read_turns(turn_list(values.get(layout.messages), layout.messages), layout.messages)
    if layout.prompt is None and layout.template.needs_prompt:
        return None
    return read_prompt(values, layout)


def _part(chosen: Messages, rejected: Messages, prompt: Messages | None) -> Pair:
    """Split two conversations after their longest common beginning, which ends with the prompt if one is given."""
    pairs = zip(chosen, rejected, strict=False)
    common = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if chosen == rejected:
        raise UnusableRow("chosen and rejected are the same")
    if common == 0 and prompt is None:
        raise UnusableRow(
            "chosen and rejected have no common beginning, so there is no prompt; is it in a column of its own? "
            "Then name it in data.columns.prompt"
        )
    shared = chosen[:common]
    if prompt is not None and shared[-len(prompt) :] != prompt:
        raise UnusableRow("chosen or rejected begins with another turn than the assistant's, and not with the prompt")
    return Pair(shared, chosen[common:], rejected[common:])


def _answers_together(prompt: Messages, chosen: Messages, rejected: Messages) -> Pair:
    """Count assistant turns at the prompt's end to both answers: a prompt is all before them (`Example.rejected`)."""
    end = len(prompt)
    while end and prompt[end - 1].role == "assistant":
        end -= 1
    return Pair(prompt[:end], prompt[end:] + chosen, prompt[end:] + rejected)


def _checked(pair: Pair) -> Pair:
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not answer:
            raise UnusableRow(f"{name} has no answer after the prompt: it is the beginning of the other one")
        other = next((message for message in answer if not _is_answer(message)), None)
        if other is not None:
            raise UnusableRow(
                f"{name} goes on with a turn of role `{other.role}` where it parts from the other: "
                "only answers to one and the same prompt can be compared"
            )
    return pair


def _is_answer(message: Message) -> bool:
    return message.role == "assistant"
