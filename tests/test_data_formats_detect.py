"""A row's columns tell its format, and `data.columns` has the last word."""

import pytest

from tuneline.data.formats.detect import detect_format


@pytest.mark.parametrize(
    ("columns", "format_"),
    [
        ("prompt completion", "prompt_completion"),
        ("prompt response", "prompt_completion"),
        ("question answer", "prompt_completion"),
        ("query response", "prompt_completion"),
        ("input output", "prompt_completion"),
        ("instruction response", "prompt_completion"),
        ("answer id question", "prompt_completion"),
        ("prompt completion text", "prompt_completion"),
        ("instruction output", "alpaca"),
        ("instruction input output", "alpaca"),
        ("instruction input output text", "alpaca"),
        ("instruction input output system history", "alpaca"),
        ("conversations", "sharegpt"),
        ("conversation system tools", "sharegpt"),
        ("messages", "messages"),
        ("messages tools", "messages"),
        ("messages prompt text", "messages"),
        ("text", "text"),
        ("text category", "text"),
        ("text label", "text"),
        ("chosen rejected", "preference"),
        ("prompt chosen rejected", "preference"),
        ("conversations chosen rejected", "preference"),
        ("prompt chosen rejected messages score", "preference"),
        ("messages label", "unpaired_preference"),
        ("conversations label", "unpaired_preference"),
        ("prompt completion label", "unpaired_preference"),
        ("question answer label", "unpaired_preference"),
        ("instruction input output label", "alpaca"),
        ("prompt", None),
        ("prompt chosen", None),
        ("Prompt Completion", None),
        ("title body", None),
        ("", None),
    ],
)
def test_columns_tell_the_format(columns: str, format_: str | None) -> None:
    assert detect_format(tuple(columns.split())) == format_


@pytest.mark.parametrize(
    ("columns", "roles", "format_"),
    [
        ("text category", {"prompt": "text", "completion": "category"}, "prompt_completion"),
        ("frage antwort", {"prompt": "frage", "completion": "antwort"}, "prompt_completion"),
        ("frage answer", {"prompt": "frage"}, "prompt_completion"),
        ("messages frage antwort", {"prompt": "frage", "completion": "antwort"}, "prompt_completion"),
        ("text category", {"prompt": "text"}, None),
        ("body prompt completion", {"text": "body"}, "text"),
        ("dialog", {"messages": "dialog"}, "messages"),
        ("question good bad", {"prompt": "question", "chosen": "good", "rejected": "bad"}, "preference"),
        ("messages ok", {"label": "ok"}, "unpaired_preference"),
        ("frage antwort ok", {"prompt": "frage", "completion": "antwort", "label": "ok"}, "unpaired_preference"),
        ("instruction input answer", {"completion": "answer"}, "alpaca"),
        ("prompt completion preamble", {"system": "preamble"}, "prompt_completion"),
    ],
)
def test_mapped_columns_decide(columns: str, roles: dict[str, str], format_: str | None) -> None:
    assert detect_format(tuple(columns.split()), tuple(roles.items())) == format_  # type: ignore[arg-type]


def test_rows_of_another_source_than_the_mapped_one_keep_their_own_format() -> None:
    roles = (("prompt", "frage"), ("completion", "antwort"))
    assert detect_format(("messages",), roles) == "messages"
    assert detect_format(("frage", "antwort"), roles) == "prompt_completion"


def test_a_mapped_column_that_is_nearly_there_is_a_slip_and_not_another_format() -> None:
    assert detect_format(("messages", "label"), (("label", "lable"),)) is None
    assert detect_format(("messages", "label"), (("label", "no_such_column"),)) == "messages"


@pytest.mark.parametrize(
    ("columns", "template", "format_"),
    [
        ("instruction input output", "{prompt}", "alpaca"),
        ("instruction input output", "{instruction}: {input}", "prompt_completion"),
        ("title body answer", "{title}: {body}", "prompt_completion"),
        ("title answer", "{title}: {body}", None),
        ("title answer", "{title}: {prompt}", None),
        ("title body", "{title}: {body}", None),
    ],
)
def test_a_prompt_template_makes_prompts_of_other_columns(columns: str, template: str, format_: str | None) -> None:
    assert detect_format(tuple(columns.split()), (), template) == format_


def test_detection_is_remembered_by_the_tuple_of_columns() -> None:
    columns = ("question", "answer", "seen_only_here")
    misses = detect_format.cache_info().misses
    assert detect_format(columns) == detect_format(columns) == "prompt_completion"
    assert detect_format.cache_info().misses == misses + 1
