"""Secrets and personal data in examples: found, and replaced by what they are where the policy says so."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tuneline.contracts.data_spec import CleaningSpec
from tuneline.contracts.records import Example, Message, ToolCall
from tuneline.data.cleaning.patterns import PERSONAL, SECRETS, Group, Pattern, Span
from tuneline.data.cleaning.texts import text_of
from tuneline.data.cleaning.words import arrow_texts

JSON_ESCAPE: Final = r"\\[u/]"
"""Escapes by which JSON can spell a character of a secret, so that no hint finds it in the text of the arguments."""
JSON_VALUE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![0-9.eE+-])[0-9]{13,19}(?![0-9.eE])')
"""A string of a JSON text, or a whole number that is long enough for a card."""
GROUPS: Final[dict[str, Group]] = {pattern.kind: pattern.group for pattern in (*SECRETS, *PERSONAL)}


@dataclass(frozen=True, slots=True)
class Checked:
    """An example, redacted where the policy says so (else the same object), and the kinds found in it, sorted."""

    example: Example
    found: tuple[str, ...]


def kind_group(kind: str) -> Group:
    """Tell whether a kind is a secret or personal data."""
    return GROUPS[kind]


class SensitiveText:
    """Looks for what the config does not switch off, and redacts where it says `redact`.

    A regular expression of RE2 over a whole chunk finds the rows that may hold something; only those are looked at
    closely. Tool definitions (`Example.tools`) are not looked at: they are the developer's text, not a person's.
    """

    def __init__(self, spec: CleaningSpec) -> None:
        policies = {"secret": spec.secrets, "personal": spec.personal_data}
        self._patterns = [pattern for pattern in (*SECRETS, *PERSONAL) if policies[pattern.group] != "off"]
        self._redacted = {pattern.kind for pattern in self._patterns if policies[pattern.group] == "redact"}
        self._hints = "|".join([JSON_ESCAPE, *(f"(?:{pattern.hint})" for pattern in self._patterns)])

    def check(self, examples: Sequence[Example]) -> list[Checked]:
        """Check a chunk of examples."""
        checked = [Checked(example, ()) for example in examples]
        if not self._patterns:
            return checked
        texts = arrow_texts([text_of(example) for example in examples])
        hinted = np.flatnonzero(pc.match_substring_regex(texts, pattern=self._hints))
        for index, patterns in zip(hinted.tolist(), self._hinted_patterns(texts.take(hinted)), strict=True):
            checked[index] = _Check(patterns, self._redacted).example(examples[index])
        return checked

    def _hinted_patterns(self, texts: pa.LargeStringArray) -> list[list[Pattern]]:
        """Choose the patterns to look for in each text: a hint costs 1 ns a character, a search in Python 30."""
        escaped = pc.match_substring_regex(texts, pattern=JSON_ESCAPE)
        hints = [
            pc.or_(escaped, pc.match_substring_regex(texts, pattern=pattern.hint)).to_pylist()
            for pattern in self._patterns
        ]
        return [list(compress(self._patterns, row)) for row in zip(*hints, strict=True)]


class _Check:
    """Looks for some patterns in one example: `found` collects their kinds."""

    def __init__(self, patterns: list[Pattern], redacted: set[str]) -> None:
        self._patterns = patterns
        self._redacted = redacted
        self._found: set[str] = set()

    def example(self, example: Example) -> Checked:
        """Check every text of an example."""
        messages = tuple(self._message(message) for message in example.messages)
        rejected = tuple(self._message(message) for message in example.rejected)
        text = None if example.text is None else self._text(example.text)
        if (messages, rejected, text) != (example.messages, example.rejected, example.text):
            example = example.model_copy(update={"messages": messages, "rejected": rejected, "text": text})
        return Checked(example, tuple(sorted(self._found)))

    def _message(self, message: Message) -> Message:
        content = self._text(message.content)
        reasoning = None if message.reasoning is None else self._text(message.reasoning)
        calls = tuple(self._call(call) for call in message.tool_calls)
        if (content, reasoning, calls) == (message.content, message.reasoning, message.tool_calls):
            return message
        return message.model_copy(update={"content": content, "reasoning": reasoning, "tool_calls": calls})

    def _call(self, call: ToolCall) -> ToolCall:
        arguments = JSON_VALUE.sub(lambda match: self._json_value(match[0]), call.arguments)
        # a value whose name tells that it is secret; it holds no quote and no backslash, so that JSON stays JSON
        arguments = self._text(arguments, only_assignments=True)
        return call if arguments == call.arguments else call.model_copy(update={"arguments": arguments})

    def _json_value(self, literal: str) -> str:
        text = str(json.loads(literal))
        clean = self._text(text)
        return literal if clean == text else json.dumps(clean, ensure_ascii=literal.isascii())

    def _text(self, text: str, *, only_assignments: bool = False) -> str:
        """Note what is found in a text, and redact it.

        Again until nothing is left, since a match may have hidden another one that it overlapped or touched.
        """
        patterns = [pattern for pattern in self._patterns if pattern.is_assignment or not only_assignments]
        while True:
            spans = [span for pattern in patterns for span in pattern.spans(text)]
            self._found.update(span.kind for span in spans)
            redacted = [span for span in spans if span.kind in self._redacted]
            if not redacted:
                return text
            text = _replaced(text, redacted)


def _replaced(text: str, spans: list[Span]) -> str:
    """Put `[kind]` in the place of each span; spans that overlap become one, under the first one's kind."""
    pieces: list[str] = []
    end = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start >= end:
            pieces += [text[end : span.start], f"[{span.kind}]"]
        end = max(end, span.end)
    return "".join([*pieces, text[end:]])
