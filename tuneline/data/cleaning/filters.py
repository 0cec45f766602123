"""Rows that a config leaves out: without an answer, in another language, with or without a pattern."""

import re
from collections.abc import Sequence
from typing import Final

from tuneline.contracts.data_spec import CleaningSpec
from tuneline.contracts.errors import UserError
from tuneline.contracts.records import Example, Message
from tuneline.data.cleaning.texts import last_answer, text_of

MIN_LETTERS: Final = 20
"""Fewer letters do not tell a language: such texts are kept."""
READ_CHARACTERS: Final = 2_000
"""Beginning of a text from which its language is told: more changes nothing and costs 0.1 us a character."""


class RowFilter:
    """Tells which rows the config leaves out, and why.

    Raises:
        UserError: for languages that cannot be told.
    """

    def __init__(self, spec: CleaningSpec) -> None:
        self._languages = frozenset(spec.languages)
        self._keep = None if spec.keep_pattern is None else re.compile(spec.keep_pattern)
        self._drop = None if spec.drop_pattern is None else re.compile(spec.drop_pattern)
        if self._languages:
            _check_languages(self._languages)

    def reasons(self, examples: Sequence[Example]) -> list[str | None]:
        """Give the first reason why each row is left out; None for those that stay."""
        return [self._reason(example) for example in examples]

    def _reason(self, example: Example) -> str | None:
        if _lacks_answer(example):
            return "empty answer"
        if not (self._languages or self._keep or self._drop):
            return None
        text = text_of(example)
        language = self._foreign_language(text)
        if language is not None:
            return f"language is {language}"
        if self._keep is not None and not self._keep.search(text):
            return "cleaning.keep_pattern not found"
        if self._drop is not None and self._drop.search(text):
            return "cleaning.drop_pattern found"
        return None

    def _foreign_language(self, text: str) -> str | None:
        beginning = text[:READ_CHARACTERS]
        if not self._languages or sum(map(str.isalpha, beginning)) < MIN_LETTERS:
            return None
        import py3langid  # here, because its model takes 0.7 s and 50 MB that few runs need

        language = str(py3langid.classify(beginning)[0])
        return None if language in self._languages else language


def _lacks_answer(example: Example) -> bool:
    if example.text is not None:
        return not example.text.strip()
    answers = [example.messages, example.rejected] if example.kind == "preference" else [example.messages]
    return any(_says_nothing(last_answer(turns)) for turns in answers)


def _says_nothing(answer: Message | None) -> bool:
    return answer is None or not (answer.content.strip() or answer.tool_calls)


def _check_languages(languages: frozenset[str]) -> None:
    import py3langid

    known = {language for language, _ in py3langid.rank("")}
    unknown = sorted(languages - known)
    if unknown:
        fix = f"use two-letter codes (ISO 639-1), of {' '.join(sorted(known))}"
        raise UserError.of(f"no languages that can be told: {', '.join(unknown)}", "data.cleaning.languages", fix)
