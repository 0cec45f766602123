"""Conversations to token ids and loss masks, for any chat template.

Which tokens are learned is found by rendering message prefixes and comparing ids: the tokens that an assistant turn
adds to the prompt before it are learned, up to the stop token that ends it. No template needs a `generation` marker,
and a template that rewrites earlier turns as the conversation grows is refused rather than masked wrongly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.contracts.errors import UserError
from tuneline.contracts.records import IGNORED_LABEL, Conversation, Message
from tuneline.contracts.spec import ModelSpec
from tuneline.data.formats import BadRow, map_rows


@dataclass(frozen=True)
class Rendered:
    """A conversation in tokens; the last answer is `input_ids[prompt_length_tokens:answer_end]`."""

    row_id: str
    messages: tuple[Message, ...]
    input_ids: list[int]
    labels: list[int]
    prompt_length_tokens: int
    answer_end: int

    @property
    def prompt_ids(self) -> list[int]:
        """Ids of all that comes before the last answer."""
        return self.input_ids[: self.prompt_length_tokens]

    @property
    def answer_ids(self) -> list[int]:
        """Ids of the last answer with its stop token."""
        return self.input_ids[self.prompt_length_tokens : self.answer_end]

    @property
    def learned_tokens(self) -> int:
        """Number of tokens that carry a label."""
        return sum(label != IGNORED_LABEL for label in self.labels)


class ChatRenderer:
    """A tokenizer with its template and the ids that end an answer."""

    def __init__(self, base: Path, spec: ModelSpec) -> None:
        """Load the tokenizer of a base model's folder and, if the config names one, another template."""
        from transformers import AutoTokenizer, GenerationConfig

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        if spec.chat_template is not None:
            self.tokenizer.chat_template = Path(spec.chat_template).read_text(encoding="utf-8")
        has_config = (base / "generation_config.json").is_file()
        self.generation_config: Any = GenerationConfig.from_pretrained(base) if has_config else GenerationConfig()
        self.stop_token_ids = self._stop_token_ids()
        self.generation_config.eos_token_id = list(self.stop_token_ids)

    @property
    def template(self) -> str:
        """Text of the chat template."""
        return str(self.tokenizer.chat_template)

    def save(self, folder: Path) -> None:
        """Write tokenizer, template and generation config: they travel with the model from here to the server."""
        self.tokenizer.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Render and mask conversations.

        Raises:
            UserError: naming the rows that the template cannot render, or renders unstably.
        """
        texts: list[str] = []
        for prefixes in map_rows(conversations, self._prefix_texts, lambda conversation: conversation.row_id):
            texts += prefixes
        ids = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        return map_rows(
            conversations,
            lambda conversation: self._mask(conversation, [next(ids) for _ in self._cuts(conversation)]),
            lambda conversation: conversation.row_id,
        )

    def _stop_token_ids(self) -> tuple[int, ...]:
        known = self.generation_config.eos_token_id
        ids = set(known) if isinstance(known, list) else {known}
        ids.add(self.tokenizer.eos_token_id)
        ids.discard(None)
        if not ids:
            fix = "set eos_token in tokenizer_config.json or eos_token_id in generation_config.json"
            raise UserError.of("neither tokenizer nor generation config names a stop token", "model.base", fix)
        return tuple(sorted(ids))

    @staticmethod
    def _cuts(conversation: Conversation) -> list[tuple[int, bool]]:
        """List the prefixes to render: (messages, with generation prompt) before and after each assistant turn."""
        turns = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        return [cut for index in turns for cut in ((index, True), (index + 1, False))]

    def _prefix_texts(self, conversation: Conversation) -> list[str]:
        from jinja2 import TemplateError

        messages = [message.model_dump() for message in conversation.messages]
        try:
            return [
                self.tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=prompt)
                for end, prompt in self._cuts(conversation)
            ]
        except TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error}") from None

    def _mask(self, conversation: Conversation, prefixes: list[list[int]]) -> Rendered:
        whole = prefixes[-1]
        labels = [IGNORED_LABEL] * len(whole)
        start = end = 0
        for before, after in zip(prefixes[::2], prefixes[1::2], strict=True):
            if after[: len(before)] != before or whole[: len(after)] != after:
                raise BadRow("the chat template rewrites earlier turns, so what it teaches cannot be told from ids")
            start, end = len(before), self._answer_end(after, len(before))
            labels[start:end] = whole[start:end]
        return Rendered(conversation.row_id, conversation.messages, whole, labels, start, end)

    def _answer_end(self, ids: list[int], start: int) -> int:
        """Index after the last stop token of an answer; what a template puts behind it is never generated."""
        for index in range(len(ids) - 1, start - 1, -1):
            if ids[index] in self.stop_token_ids:
                return index + 1
        return len(ids)
