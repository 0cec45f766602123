"""Keys: two examples share one exactly when they are the same, white space at the ends of contents aside."""

from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.contracts.records import Example, Message, ToolCall
from tuneline.data.cleaning.texts import key_of, prompt_key_text, text_of, whole_key_text

CALL = ToolCall(name="weather", arguments='{"city": "Riga"}')
RICH: dict[str, Any] = {
    "kind": "preference",
    "tools": '[{"name": "weather"}]',
    "messages": (
        Message(role="system", content="be brief"),
        Message(role="user", content="how warm is it in Riga"),
        Message(role="assistant", reasoning="I must ask", tool_calls=(CALL,)),
        Message(role="tool", content="21", name="weather", tool_call_id="a1"),
        Message(role="assistant", reasoning="now I know", content="21 degrees"),
    ),
    "rejected": (Message(role="assistant", content="cold"),),
}


def example(**fields: Any) -> Example:
    return Example(**{"row_id": "a:1", "kind": "conversation", "format": "messages", **fields})


def changed(index: int, **fields: Any) -> Example:
    messages = list(RICH["messages"])
    messages[index] = messages[index].model_copy(update=fields)
    return example(**{**RICH, "messages": tuple(messages)})


def test_the_text_holds_every_part_in_reading_order() -> None:
    assert text_of(example(**RICH)).split("\n") == [
        "be brief",
        "how warm is it in Riga",
        "I must ask",
        '{"city": "Riga"}',
        "21",
        "now I know",
        "21 degrees",
        "cold",
    ]
    assert text_of(example(kind="text", text="once upon a time")) == "once upon a time"


@pytest.mark.parametrize(
    "other",
    [
        changed(0, content="be long"),
        changed(0, role="developer"),
        changed(1, content="how warm is it in  Riga"),
        changed(2, reasoning="I need not ask"),
        changed(2, tool_calls=(CALL.model_copy(update={"arguments": '{"city": "Oslo"}'}),)),
        changed(2, tool_calls=(CALL.model_copy(update={"name": "climate"}),)),
        changed(2, tool_calls=(CALL, CALL)),
        changed(3, name="climate"),
        example(**{**RICH, "tools": "[]"}),
        example(**{**RICH, "messages": RICH["messages"][1:]}),
    ],
)
def test_a_change_before_the_last_answer_makes_another_prompt(other: Example) -> None:
    assert prompt_key_text(other) != prompt_key_text(example(**RICH))
    assert whole_key_text(other) != whole_key_text(example(**RICH))


@pytest.mark.parametrize(
    "other",
    [
        changed(4, content="21 degrees!"),
        changed(4, reasoning="I guess"),
        changed(4, weight=0),
        example(**{**RICH, "rejected": (Message(role="assistant", content="warm"),)}),
        example(**{**RICH, "rejected": ()}),
        example(**{**RICH, "desirable": False}),
    ],
)
def test_a_change_from_the_last_answer_on_leaves_the_prompt_the_same(other: Example) -> None:
    assert prompt_key_text(other) == prompt_key_text(example(**RICH))
    assert whole_key_text(other) != whole_key_text(example(**RICH))


def test_where_a_row_stands_and_how_it_was_read_is_no_part_of_its_key() -> None:
    other = example(**{**RICH, "row_id": "b:9", "format": "sharegpt"})
    assert whole_key_text(other) == whole_key_text(example(**RICH))


def test_white_space_at_the_ends_of_contents_is_ignored_and_within_them_it_is_not() -> None:
    assert whole_key_text(changed(4, content="\n 21 degrees\t")) == whole_key_text(example(**RICH))
    assert prompt_key_text(changed(1, content=" how warm is it in Riga ")) == prompt_key_text(example(**RICH))
    assert whole_key_text(changed(4, content="21  degrees")) != whole_key_text(example(**RICH))


def test_a_plain_text_is_its_own_prompt_so_that_it_conflicts_with_nothing() -> None:
    one, other = (example(kind="text", text=text) for text in ("the first", "the second"))
    assert prompt_key_text(one) != prompt_key_text(other)
    assert prompt_key_text(one) == whole_key_text(one) == whole_key_text(example(kind="text", text="the first\n"))


CONTENTS = st.lists(st.sampled_from(["a", "1", ":", "4:user", "user"]), max_size=5).map("".join)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.lists(CONTENTS, min_size=1, max_size=3), min_size=2, max_size=2, unique_by=tuple))
@hypothesis.example([["a", "b"], ["a:user:b"]])
@hypothesis.example([["a", "b"], ["a4:user1:b"]])
def test_no_text_can_be_mistaken_for_the_border_between_two(pairs: list[list[str]]) -> None:
    one, other = (
        example(messages=tuple(Message(role="user", content=content) for content in contents)) for contents in pairs
    )
    assert whole_key_text(one) != whole_key_text(other)


def test_a_key_is_xxh3_whatever_the_machine_and_half_a_surrogate_pair_has_one() -> None:
    assert key_of("") == 0x2D06800538D394C2  # XXH3_64bits of no bytes with seed 0, as the xxHash specification gives it
    assert len({key_of(text) for text in ("\ud800", "\udc00", "?", "")}) == 4
    assert all(0 <= key_of(str(number)) < 2**64 for number in range(1_000))
