"""The questions that the smoke test asks a vLLM server over HTTP (endpoints of vLLM 0.32)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from tuneline.contracts.records import Message

REQUEST_SECONDS: Final = 120.0
"""Bound of one request; on two busy cores the slowest of the ladder took 3 s."""


@dataclass(frozen=True)
class ServedModel:
    """An entry of the server's list of models."""

    name: str
    max_model_len: int


@dataclass(frozen=True)
class Answer:
    """A chat answer: why it ended (`stop` or `length`) and the weights' fingerprint that came with it."""

    text: str
    finish_reason: str
    fingerprint: str


class ServerClient:
    """Asks the server on a port of 127.0.0.1; every method raises `httpx.HTTPError` where it gets no answer."""

    def __init__(self, port: int) -> None:
        # trust_env: a proxy that the environment names must not see questions to this machine.
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        """Open the connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[ServedModel]:
        """List the served models."""
        response = self._http.get("/v1/models")
        _raise_for_error(response)
        return [ServedModel(entry["id"], entry["max_model_len"]) for entry in response.json()["data"]]

    def chat_token_ids(self, model: str, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """Render a conversation as the server does for an answer, and return its token ids."""
        reply = self._ask(
            "/tokenize", {"model": model, **_conversation(messages, tools), "add_generation_prompt": True}
        )
        return list(reply["tokens"])

    def answer_logprobs(self, model: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[float]:
        """Score a given answer: the log-probability of each of its tokens, in nats."""
        question = {
            "model": model,
            "prompt": [*prompt_ids, *answer_ids],
            "prompt_logprobs": 0,
            "max_tokens": 1,
            "temperature": 0,
        }
        scored = self._ask("/v1/completions", question)["choices"][0]["prompt_logprobs"][len(prompt_ids) :]
        return [entry[str(token)]["logprob"] for entry, token in zip(scored, answer_ids, strict=True)]

    def chat(self, model: str, messages: Sequence[Message], max_tokens: int, tools: str | None = None) -> Answer:
        """Answer a conversation greedily; tools are told of, and calls of them stay text."""
        question = {"model": model, **_conversation(messages, tools), "max_tokens": max_tokens, "temperature": 0}
        if tools is not None:
            question["tool_choice"] = "none"
        reply = self._ask("/v1/chat/completions", question)
        choice = reply["choices"][0]
        return Answer(choice["message"]["content"] or "", choice["finish_reason"], reply["system_fingerprint"])

    def stream_tokens(
        self,
        model: str,
        prompt_ids: Sequence[int],
        tokens: int,
        timeout_seconds: float,
        after_first: Callable[[], None],
    ) -> int:
        """Stream exactly `tokens` tokens, calling `after_first` once the first has come.

        `timeout_seconds` bounds the wait for each next token.

        Returns:
            The number of tokens that the server says it generated; 0 when the stream broke off before its end.
        """
        question = {
            "model": model,
            "prompt": list(prompt_ids),
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        generated, waiting = 0, True
        with self._http.stream("POST", "/v1/completions", json=question, timeout=timeout_seconds) as response:
            if response.is_error:
                response.read()
            _raise_for_error(response)
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                if waiting:
                    waiting = False
                    after_first()
                usage = json.loads(line.removeprefix("data: ")).get("usage")
                generated = usage["completion_tokens"] if usage else generated
        return generated

    def _ask(self, path: str, question: dict[str, object]) -> dict[str, Any]:
        response = self._http.post(path, json=question)
        _raise_for_error(response)
        reply: dict[str, Any] = response.json()
        return reply


def _raise_for_error(response: httpx.Response) -> None:
    if response.is_error:  # the body says why, and httpx's own message leaves it out
        words = f"{response.url.path} answered {response.status_code}: {response.text[:500]}"
        raise httpx.HTTPStatusError(words, request=response.request, response=response)


def _conversation(messages: Sequence[Message], tools: str | None) -> dict[str, Any]:
    chat = {"messages": [message.as_chat(arguments_as_text=True) for message in messages]}
    return chat if tools is None else {**chat, "tools": json.loads(tools)}
