"""Row filters: the first reason why a row is left out."""

import pytest

from tuneline.contracts.data_spec import CleaningSpec
from tuneline.contracts.errors import UserError
from tuneline.contracts.records import Example, Message, ToolCall
from tuneline.data.cleaning.filters import RowFilter

GERMAN = "Das Wetter ist heute sehr gut, und wir gehen in den Garten."
ENGLISH = "The weather is lovely today, and we are going out into the garden."
FRENCH = "Il fait vraiment beau aujourd'hui et nous allons dans le jardin."


def conversation(answer: str, prompt: str = "go on", **answer_fields: object) -> Example:
    turns = (
        Message(role="user", content=prompt),
        Message.model_validate({"role": "assistant", "content": answer} | answer_fields),
    )
    return Example(row_id="a:1", kind="conversation", format="messages", messages=turns)


def reason(example: Example, **spec: object) -> str | None:
    return RowFilter(CleaningSpec.model_validate(spec)).reasons([example])[0]


@pytest.mark.parametrize("blank", ["", " \n\t", "\u00a0"])
def test_an_answer_of_white_space_is_empty_and_one_that_only_calls_a_tool_is_not(blank: str) -> None:
    assert reason(conversation(blank)) == "empty answer"
    assert reason(conversation(blank, tool_calls=(ToolCall(name="look", arguments="{}"),))) is None
    assert reason(conversation("yes")) is None


def test_only_the_last_answer_counts() -> None:
    turns = (*conversation("").messages, *conversation("yes").messages)
    assert reason(Example(row_id="a:1", kind="conversation", format="messages", messages=turns)) is None
    assert reason(Example(row_id="a:1", kind="conversation", format="messages", messages=turns[:1])) == "empty answer"


def test_a_blank_text_is_empty() -> None:
    texts = [Example(row_id="a:1", kind="text", format="text", text=text) for text in (" \n", "words")]
    assert RowFilter(CleaningSpec()).reasons(texts) == ["empty answer", None]


def test_a_preference_needs_both_answers() -> None:
    pair = conversation("good").model_copy(update={"kind": "preference"})
    rejected = [(Message(role="assistant", content=content),) for content in ("bad", " ")]
    pairs = [pair.model_copy(update={"rejected": turns}) for turns in (*rejected, ())]
    assert RowFilter(CleaningSpec()).reasons(pairs) == [None, "empty answer", "empty answer"]


def test_rows_in_other_languages_are_named_by_the_language_found() -> None:
    rows = [conversation(text, prompt="") for text in (GERMAN, ENGLISH, FRENCH)]
    reasons = RowFilter(CleaningSpec(languages=("de", "en"))).reasons(rows)
    assert reasons == [None, None, "language is fr"]


def test_a_text_too_short_to_tell_its_language_stays() -> None:
    assert reason(conversation("ja, bitte sehr", prompt=""), languages=("en",)) is None
    assert reason(conversation("1234567890 - 1234567890 = 0", prompt=""), languages=("de",)) is None


def test_a_language_that_cannot_be_told_is_an_error_that_lists_those_that_can() -> None:
    with pytest.raises(UserError, match=r"german, klingon[\s\S]*\bde\b"):
        RowFilter(CleaningSpec(languages=("klingon", "german", "en")))


def test_patterns_are_looked_for_in_all_of_the_text() -> None:
    row = conversation("the answer", prompt="the question")
    assert reason(row, keep_pattern="quest") is None
    assert reason(row, keep_pattern="^answer") == "cleaning.keep_pattern not found"
    assert reason(row, drop_pattern="answ.r$") == "cleaning.drop_pattern found"
    assert reason(row, drop_pattern="ANSWER") is None


def test_of_several_reasons_the_first_is_given() -> None:
    every = {"languages": ("en",), "keep_pattern": "xyzzy", "drop_pattern": "e"}
    assert reason(conversation("", prompt=GERMAN), **every) == "empty answer"
    assert reason(conversation(GERMAN), **every) == "language is de"
    assert reason(conversation(ENGLISH), **every) == "cleaning.keep_pattern not found"
    assert reason(conversation(f"{ENGLISH} xyzzy"), **every) == "cleaning.drop_pattern found"
