"""The base's tokenizer with its chat template and the ids that end an answer: what travels with the model."""

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tuneline.contracts.errors import UserError
from tuneline.contracts.records import Message
from tuneline.contracts.spec import ModelSpec
from tuneline.data.encoding import Encoder
from tuneline.data.template import ChatTemplate
from tuneline.data.tokenized import TokenizedTexts


class Beginning(NamedTuple):
    """The first messages of a conversation, to be written out by the template; no dataclass: two for each row."""

    messages: int
    asks: bool
    """Whether the template's generation prompt follows: the place where the model starts to answer."""


class ChatTokenizer:
    """A tokenizer of a base model's folder and, if the config names one, another template."""

    def __init__(self, base: Path, spec: ModelSpec) -> None:
        """Load both.

        Raises:
            UserError: no fast tokenizer, or no stop token.
        """
        from transformers import AutoTokenizer, GenerationConfig

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        if not self.tokenizer.is_fast:
            fix = "convert it: the folder needs a tokenizer.json"
            raise UserError.of("the tokenizer has no fast version, so text cannot be traced to tokens", str(base), fix)
        if spec.chat_template is not None:
            self.tokenizer.chat_template = Path(spec.chat_template).read_text(encoding="utf-8")
        has_config = (base / "generation_config.json").is_file()
        self.generation_config: Any = GenerationConfig.from_pretrained(base) if has_config else GenerationConfig()
        self.stop_token_ids = self._stop_token_ids()
        self.generation_config.eos_token_id = list(self.stop_token_ids)
        self._encoder = self._make_encoder()
        self._chat_template = ChatTemplate(self.template, self.tokenizer.special_tokens_map)

    @property
    def template(self) -> str:
        """Text of the chat template."""
        return str(self.tokenizer.get_chat_template())

    @property
    def stop_tokens(self) -> list[str]:
        """The stop tokens, for people."""
        return [repr(self.tokenizer.decode([token])) for token in self.stop_token_ids]

    @cached_property
    def bos_token_id(self) -> int | None:
        """Id that may open a row and stand nowhere else; None where the token also ends turns (as in GPT-2)."""
        known = self.tokenizer.bos_token_id
        return None if known is None or known in self.stop_token_ids else int(known)

    @cached_property
    def opening_token_ids(self) -> tuple[int, ...]:
        """Ids that the tokenizer itself puts before plain text."""
        with_opening = self.tokenizer("a")["input_ids"]
        return tuple(with_opening[: with_opening.index(int(self.encode(["a"]).ids[0]))])

    @cached_property
    def special_spelling(self) -> re.Pattern[str]:
        """Finds what the tokenizer turns into a special token wherever it stands."""
        added = self.tokenizer.added_tokens_decoder.values()
        spellings = sorted({re.escape(token.content) for token in added if token.special})
        return re.compile("|".join(spellings) or r"(?!)")

    def answer_text(self, token_ids: NDArray[np.int32]) -> str:
        """Decode an answer as the server does: no stop token, no special tokens, spaces as they are."""
        ids = token_ids.tolist()
        ids = ids[:-1] if ids and ids[-1] in self.stop_token_ids else ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _make_encoder(self) -> Encoder:
        """Use a copy without post-processing: it adds nothing, and a token's leading space stays inside of it."""
        from tokenizers import Tokenizer, processors

        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = processors.Sequence([])
        return Encoder(backend)

    def encode(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenise texts as they stand."""
        return self._encoder.encode(texts)

    def write_out(
        self, messages: Sequence[Message], tools: str | None, beginnings: Sequence[Beginning]
    ) -> list[str | Exception]:
        """Apply the chat template to beginnings of a conversation; where it refuses, the error stands for the text."""
        chat, parsed, template = (
            [self._as_chat(message) for message in messages],
            _parse_tools(tools),
            self._chat_template,
        )
        return [template.write(chat[: one.messages], parsed, asks=one.asks) for one in beginnings]

    def save(self, folder: Path) -> None:
        """Write tokenizer, template and generation config: they travel with the model from here to the server."""
        self.tokenizer.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    def _as_chat(self, message: Message) -> dict[str, Any]:
        chat = message.as_chat()
        if message.role == "developer" and not self._knows_developer:
            chat["role"] = "system"
        return chat

    @cached_property
    def _knows_developer(self) -> bool:
        return "developer" in self.template

    def _stop_token_ids(self) -> tuple[int, ...]:
        known = self.generation_config.eos_token_id
        ids = set(known) if isinstance(known, list) else {known}
        ids.add(self.tokenizer.eos_token_id)
        ids.discard(None)
        if not ids:
            fix = "set eos_token in tokenizer_config.json or eos_token_id in generation_config.json"
            raise UserError.of("neither tokenizer nor generation config names a stop token", "model.base", fix)
        return tuple(sorted(ids))


@lru_cache(maxsize=256)
def _parse_tools(tools: str | None) -> Any:
    return None if tools is None else json.loads(tools)
