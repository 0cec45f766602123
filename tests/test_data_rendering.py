from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_model import make_tiny_base

from tuneline.contracts.errors import UserError
from tuneline.contracts.records import IGNORED_LABEL, Conversation, Message
from tuneline.contracts.spec import ModelSpec
from tuneline.data.rendering import ChatRenderer, Rendered

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LAST_TURN_ONLY = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}(hidden){% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def chat(*turns: tuple[str, str], row_id: str = "rows.jsonl:1") -> Conversation:
    messages = tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)
    return Conversation(row_id=row_id, messages=messages)


def renderer(base: Path, tmp_path: Path, template: str | None = None) -> ChatRenderer:
    if template is None:
        return ChatRenderer(base, ModelSpec(base=str(base)))
    path = tmp_path / "template.jinja"
    path.write_text(template)
    return ChatRenderer(base, ModelSpec(base=str(base), chat_template=str(path)))


def learned_text(rows: Sequence[Rendered], renderer: ChatRenderer) -> list[str]:
    return [renderer.tokenizer.decode([label for label in row.labels if label != IGNORED_LABEL]) for row in rows]


TWO_TURNS = (("user", "red kitchen"), ("assistant", "green"), ("user", "and then"), ("assistant", "blue garden"))


@pytest.mark.parametrize("template", [None, CHATML, CHATML + "\n"])
def test_every_answer_is_learned_up_to_its_stop_token_and_nothing_else(
    base: Path, tmp_path: Path, template: str | None
) -> None:
    chats = renderer(base, tmp_path, template)
    rows = chats.render([chat(*TWO_TURNS)])
    assert learned_text(rows, chats) == ["green<|end|>blue garden<|end|>"]


def test_ids_are_those_of_the_whole_conversation_rendered_at_once(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, CHATML)
    row = chats.render([chat(*TWO_TURNS)])[0]
    messages = [{"role": role, "content": content} for role, content in TWO_TURNS]
    text = chats.tokenizer.apply_chat_template(messages, tokenize=False)
    assert row.input_ids == chats.tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = chats.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert chats.tokenizer.decode(row.prompt_ids) == prompt
    assert chats.tokenizer.decode(row.answer_ids) == "blue garden<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_row(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, LAST_TURN_ONLY)
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the chat template rewrites earlier turns"):
        chats.render([chat(*TWO_TURNS)])
    one_turn = chats.render([chat(*TWO_TURNS[:2])])
    assert learned_text(one_turn, chats) == ["green<|end|>"]


def test_a_row_that_the_template_refuses_is_named(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, REFUSES_SYSTEM)
    with pytest.raises(UserError, match=r"rows\.jsonl:7: the chat template refuses it: no system turn"):
        chats.render([chat(("system", "be brief"), *TWO_TURNS, row_id="rows.jsonl:7")])


def test_what_travels_renders_the_same_after_a_reload(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, CHATML)
    chats.save(tmp_path / "tokenizer")
    reloaded = ChatRenderer(tmp_path / "tokenizer", ModelSpec(base="x"))
    conversation = chat(*TWO_TURNS)
    assert reloaded.template == CHATML
    assert reloaded.render([conversation]) == chats.render([conversation])
    assert reloaded.stop_token_ids == chats.stop_token_ids
