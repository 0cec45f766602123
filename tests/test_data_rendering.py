"""Masks and ids under any chat template: every answer is learned, as the model is asked for it, and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_base
from transformers import AutoTokenizer

from tuneline.contracts.records import IGNORED_LABEL, Example, Message, ToolCall
from tuneline.contracts.spec import ModelSpec
from tuneline.data.masks import count_by_role
from tuneline.data.rendering import Refused, Rendered, Renderer, Tokens
from tuneline.data.tokenizer import ChatTokenizer

QUICKSTART_BASE = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "base"
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HIDES_EARLIER_ANSWERS = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% else %}(hidden){% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPENS_A_THOUGHT = CHATML.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n(thinks){% endif %}")
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
WITH_TOOLS = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}[call {{ c.function.name }} "
    "{{ c.function.arguments.city }}]{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TWO_TURNS = (("user", "red kitchen"), ("assistant", "green"), ("user", "and then"), ("assistant", "blue garden"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the quickstart's tokenizer, with a token that opens a conversation."""
    folder = tmp_path_factory.mktemp("bos")
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART_BASE)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    return folder


def renderer(base: Path, folder: Path, template: str | None = None, learn: str = "assistant") -> Renderer:
    if template is None:
        return Renderer(ChatTokenizer(base, ModelSpec(base=str(base))), learn)
    path = folder / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return Renderer(ChatTokenizer(base, ModelSpec(base=str(base), chat_template=str(path))), learn)


def chat(*turns: tuple[str, str], row_id: str = "rows.jsonl:1", **fields: Any) -> Example:
    messages = tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)
    return Example(row_id=row_id, kind="conversation", format="messages", messages=messages, **fields)


def sound(rows: Sequence[Rendered | Refused]) -> list[Rendered]:
    assert [row for row in rows if isinstance(row, Refused)] == []
    return [row for row in rows if isinstance(row, Rendered)]


def learned(tokens: Tokens, chats: Renderer) -> str:
    return str(chats.tokenizer.tokenizer.decode([label for label in tokens.labels if label != IGNORED_LABEL]))


def learned_texts(rows: Sequence[Rendered | Refused], chats: Renderer) -> list[str]:
    return [learned(row.tokens, chats) for row in sound(rows)]


@pytest.mark.parametrize("template", [None, CHATML, CHATML + "\n", CHATML.replace("<|end|>\n", "\n<|end|>")])
def test_every_answer_is_learned_up_to_its_stop_token_and_nothing_else(
    base: Path, tmp_path: Path, template: str | None
) -> None:
    chats = renderer(base, tmp_path, template)
    newline = "\n" if template and "\n<|end|>" in template else ""
    assert learned_texts(chats.render([chat(*TWO_TURNS)]), chats) == [
        f"green{newline}<|end|>blue garden{newline}<|end|>"
    ]


def test_ids_are_those_of_the_whole_conversation_rendered_at_once(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, CHATML)
    row = sound(chats.render([chat(*TWO_TURNS)]))[0]
    messages = [{"role": role, "content": content} for role, content in TWO_TURNS]
    text = chats.tokenizer.tokenizer.apply_chat_template(messages, tokenize=False)
    assert row.tokens.ids.tolist() == chats.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]


FAMILIES = {
    "llama3": ["{}<|eot_id|>"],
    "llama3_1": ["{}<|eot_id|>"],
    "llama3_2": ["{}<|eot_id|>"],
    "qwen2_5": ["{}<|im_end|>"],
    "qwen3": ["<think>\n\n</think>\n\n{}<|im_end|>"],
    "gemma": ["{}<end_of_turn>\n"],
    "gemma3": ["{}<end_of_turn>\n"],
    "phi3": ["{}<|end|>\n<|im_end|>"],
}
"""What a turn adds under real models' templates, read with the quickstart's tokenizer, whose stop is `<|im_end|>`."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("newline", ["", "\n"])
def test_templates_of_real_models_teach_each_answer_as_the_model_is_asked_for_it(
    with_bos: Path, tmp_path: Path, family: str, newline: str
) -> None:
    template = (TRL_TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8") + newline
    chats = renderer(with_bos, tmp_path, template)
    rows = sound(chats.render([chat(*TWO_TURNS)]))
    taught = "".join(learned_texts(rows, chats))
    assert taught == "".join(FAMILIES[family][0].format(answer) for answer in ("green", "blue garden"))
    for row in rows:
        assert int((row.tokens.ids == chats.tokenizer.bos_token_id).sum()) == int("bos_token" in template)
        asked = row.tokens.ids[: row.tokens.answer_start].tolist()
        turns = [{"role": role, "content": content} for role, content in TWO_TURNS]
        shown = turns[: 1 if row.row_id.endswith("/1") else 3]
        prompt = chats.tokenizer.tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        assert chats.tokenizer.tokenizer.decode(asked) == prompt


def test_a_template_that_rewrites_earlier_turns_gives_a_row_per_answer(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, HIDES_EARLIER_ANSWERS)
    rows = sound(chats.render([chat(*TWO_TURNS)]))
    assert [(row.row_id, row.unrolled) for row in rows] == [("rows.jsonl:1/1", True), ("rows.jsonl:1/2", True)]
    assert learned_texts(rows, chats) == ["green<|end|>", "blue garden<|end|>"]
    assert chats.tokenizer.tokenizer.decode(rows[1].tokens.ids).count("(hidden)") == 1
    single = sound(chats.render([chat(*TWO_TURNS[:2])]))
    assert [(row.row_id, row.unrolled) for row in single] == [("rows.jsonl:1", False)]


def test_a_template_that_changes_the_prompt_when_the_answer_follows_is_refused_with_the_place(
    base: Path, tmp_path: Path
) -> None:
    chats = renderer(base, tmp_path, OPENS_A_THOUGHT)
    refused = chats.render([chat(*TWO_TURNS[:2])])[0]
    assert isinstance(refused, Refused)
    assert "writes the prompt otherwise when its answer follows" in refused.why
    assert "(thinks)" in refused.why and "green" in refused.why


def test_a_row_that_the_template_refuses_is_named_and_its_neighbours_are_not_lost(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, REFUSES_SYSTEM)
    rows = chats.render([chat(*TWO_TURNS), chat(("system", "be brief"), *TWO_TURNS, row_id="r:7"), chat(*TWO_TURNS)])
    assert [type(row) for row in rows] == [Rendered, Refused, Rendered]
    assert rows[1] == Refused("r:7", "the chat template refuses it: no system turn")


@pytest.mark.parametrize(
    ("learn", "weights", "expected"),
    [
        ("last_assistant", (None, None, None, None), "blue garden<|end|>"),
        ("assistant", (None, 0, None, None), "blue garden<|end|>"),
        ("assistant", (None, None, 1, 0), "green<|end|><|user|>and then<|end|>"),
        ("last_assistant", (None, 1, None, None), "green<|end|>blue garden<|end|>"),
        ("all", (None, None, None, None), "<|user|>red kitchen<|end|><|assistant|>green<|end|>"
         "<|user|>and then<|end|><|assistant|>blue garden<|end|>"),
        ("all", (0, None, 0, None), "green<|end|>blue garden<|end|>"),
    ],
)  # fmt: skip
def test_which_turns_are_learned_is_the_configs_choice_and_a_messages_weight_goes_before(
    base: Path, tmp_path: Path, learn: str, weights: tuple[Any, ...], expected: str
) -> None:
    chats = renderer(base, tmp_path, learn=learn)
    example = chat(*TWO_TURNS)
    messages = [one.model_copy(update={"weight": w}) for one, w in zip(example.messages, weights, strict=True)]
    weighted = example.model_copy(update={"messages": tuple(messages)})
    assert learned_texts(chats.render([weighted]), chats) == [expected]


def test_a_token_across_the_border_of_prompt_and_answer_is_counted_and_not_learned(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, PLAIN)
    row = sound(chats.render([chat(("user", "red"), ("assistant", "the kitchen"))]))[0]
    backend = chats.tokenizer.tokenizer
    merged = backend.tokenize("assistant: the kitchen")
    assert "Ġthe" in merged  # the prompt ends with the space that this token begins with
    assert row.merged_borders == 1
    assert learned(row.tokens, chats) == " kitchen\n"
    item = sound(chats.render_items([chat(("user", "red"), ("assistant", "the kitchen"))]))[0]
    assert backend.decode(item.tokens.ids[: item.tokens.answer_start]) == "user: red\nassistant: "
    assert learned(item.tokens, chats) == "the kitchen\n"


def test_tool_calls_are_rendered_with_their_arguments_and_learned(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, WITH_TOOLS)
    call = ToolCall(name="weather", arguments='{"city": "Rome"}')
    messages = (
        Message(role="user", content="sun?"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="hot"),
        Message(role="assistant", content="yes"),
    )
    example = Example(
        row_id="r:1", kind="conversation", format="messages", messages=messages, tools='[{"name": "weather"}]'
    )
    row = sound(chats.render([example]))[0]
    assert learned(row.tokens, chats) == "[call weather Rome]<|end|>yes<|end|>"
    assert chats.tokenizer.tokenizer.decode(row.tokens.ids).startswith('<|system|>[{"name": "weather"}]<|end|>')
    assert not row.altered
    without_place_for_tools = renderer(base, tmp_path, CHATML)
    assert sound(without_place_for_tools.render([example]))[0].altered


def test_words_that_the_template_leaves_out_are_noticed(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}"))
    rows = sound(chats.render([chat(*TWO_TURNS[:2]), chat(("system", "be brief"), *TWO_TURNS[:2])]))
    assert [row.altered for row in rows] == [False, True]


def test_a_developer_turn_becomes_a_system_turn_unless_the_template_knows_it(base: Path, tmp_path: Path) -> None:
    example = chat(("developer", "be brief"), *TWO_TURNS[:2])
    unknowing = sound(renderer(base, tmp_path, CHATML).render([example]))[0]
    knowing = renderer(base, tmp_path, CHATML + "{# developer #}")
    assert knowing.tokenizer.tokenizer.decode(unknowing.tokens.ids).startswith("<|system|>\nbe brief")
    assert "developer|>" in knowing.tokenizer.tokenizer.decode(sound(knowing.render([example]))[0].tokens.ids)


def test_a_pair_shares_its_prompt_and_learns_each_answer(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path)
    prompt = (Message(role="user", content="red"),)
    example = Example(
        row_id="r:1",
        kind="preference",
        format="preference",
        messages=(*prompt, Message(role="assistant", content="green")),
        rejected=(Message(role="assistant", content="blue garden"),),
    )
    row = sound(chats.render([example]))[0]
    assert row.rejected is not None
    assert (learned(row.tokens, chats), learned(row.rejected, chats)) == ("green<|end|>", "blue garden<|end|>")
    start = row.tokens.answer_start
    assert row.tokens.ids[:start].tolist() == row.rejected.ids[: row.rejected.answer_start].tolist()


def test_plain_text_is_learned_whole_and_ends_with_the_tokenizers_end(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path)
    example = Example(row_id="r:1", kind="text", format="text", text="red kitchen")
    assert learned_texts(chats.render([example]), chats) == ["red kitchen<|end|>"]
    item = sound(chats.render_items([example]))[0]
    assert item.tokens.answer_start == 1
    assert item.tokens.learned == len(item.tokens.ids) - 1


def test_an_item_asks_for_its_last_answer_whatever_the_weights_and_refuses_a_row_that_asks_nothing(
    base: Path, tmp_path: Path
) -> None:
    chats = renderer(base, tmp_path)
    example = chat(*TWO_TURNS)
    messages = tuple(message.model_copy(update={"weight": 0}) for message in example.messages)
    greeting = chat(("assistant", "hello"))
    rows = chats.render_items([example.model_copy(update={"messages": messages}), greeting])
    assert isinstance(rows[0], Rendered)
    assert learned(rows[0].tokens, chats) == "blue garden<|end|>"
    assert rows[1] == Refused("rows.jsonl:1", "it asks nothing: there is no answer after a prompt")


def test_tokens_are_counted_by_whose_words_they_are(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path)
    row = sound(chats.render([chat(*TWO_TURNS)]))[0]
    counts, learned_counts = count_by_role([row.turns], [row.tokens.labels])

    def tokens(*texts: str) -> int:
        return sum(len(chats.tokenizer.tokenizer.tokenize(text)) for text in texts)

    answers = tokens("green", "blue garden")
    assert counts == {"user": tokens("red kitchen", "and then"), "assistant": answers, "template": 8}
    assert learned_counts == {"user": 0, "assistant": answers, "template": 2}


def test_what_travels_renders_the_same_after_a_reload(base: Path, tmp_path: Path) -> None:
    chats = renderer(base, tmp_path, CHATML)
    chats.tokenizer.save(tmp_path / "tokenizer")
    reloaded = Renderer(ChatTokenizer(tmp_path / "tokenizer", ModelSpec(base="x")), "assistant")
    assert reloaded.tokenizer.template == CHATML
    assert reloaded.tokenizer.stop_token_ids == chats.tokenizer.stop_token_ids
    rows = [sound(one.render([chat(*TWO_TURNS)]))[0].tokens for one in (chats, reloaded)]
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    assert rows[0].labels.tolist() == rows[1].labels.tolist()


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: bool(text.strip()) and "<|" not in text
)


@settings(max_examples=60, deadline=None)
@given(questions=st.lists(WORDS, min_size=1, max_size=3), answers=st.lists(WORDS, min_size=3, max_size=3))
@pytest.mark.parametrize("template", [CHATML, PLAIN, CHATML + "\n\n"])
def test_whatever_the_words_the_mask_covers_the_answers_and_ids_are_the_whole_text(
    base: Path, tmp_path_factory: pytest.TempPathFactory, template: str, questions: list[str], answers: list[str]
) -> None:
    chats = renderer(base, tmp_path_factory.getbasetemp(), template)
    turns = [
        turn for pair in zip(questions, answers, strict=False) for turn in zip(("user", "assistant"), pair, strict=True)
    ]
    row = sound(chats.render([chat(*turns)]))[0]
    tokenizer = chats.tokenizer.tokenizer
    plain = [{"role": role, "content": content} for role, content in turns]
    whole = tokenizer.apply_chat_template(plain, tokenize=False)
    assert row.tokens.ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    ending = "\n" if template == PLAIN else "<|end|>"
    if row.merged_borders == 0:
        assert learned(row.tokens, chats) == "".join(
            f"{content}{ending}" for role, content in turns if role == "assistant"
        )
    assert not row.altered
    counts, learned_counts = count_by_role([row.turns], [row.tokens.labels])
    assert sum(counts.values()) == len(row.tokens.ids)
    assert sum(learned_counts.values()) == row.tokens.learned
    assert min(counts.values()) >= 0
