"""Secrets and personal data: what is found, what is not, and what a redacted row looks like."""

import csv
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.contracts.data_spec import CleaningSpec
from tuneline.contracts.records import Example, Message, ToolCall
from tuneline.data.cleaning.check_digits import is_card_number, is_iban, is_random, passes_luhn
from tuneline.data.cleaning.patterns import PERSONAL, SECRETS
from tuneline.data.cleaning.sensitive import Checked, SensitiveText, kind_group

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LETTERS = string.ascii_letters + string.digits
DRAW = random.Random(5)


def drawn(length: int, alphabet: str = LETTERS) -> str:
    return "".join(DRAW.choices(alphabet, k=length))


PEM = "\n".join(["-----BEGIN {} KEY-----", *(drawn(64) for _ in range(4)), "-----END {} KEY-----"])
FOUND = {
    "AWS access key": ["AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + drawn(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")],
    "GitHub token": ["ghp_" + drawn(36), "ghs_" + drawn(36), "github_pat_" + drawn(22) + "_" + drawn(59)],
    "GitLab token": ["glpat-" + drawn(20), "glrt-" + drawn(10) + "_" + drawn(9)],
    "Slack token": ["xoxb-" + drawn(12, string.digits) + "-" + drawn(24), "xapp-1-A" + drawn(12, string.digits)],
    "sk- API key": ["sk-" + drawn(48), "sk-proj-" + drawn(64), "sk-ant-api03-" + drawn(80) + "-AA"],
    "Google API key": ["AIza" + drawn(35)],
    "Stripe key": ["sk_live_" + drawn(24), "rk_test_" + drawn(40)],
    "Hugging Face token": ["hf_" + drawn(34, string.ascii_letters)],
    "JSON Web Token": ["eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NSJ9." + drawn(43)],
    "private key": [
        PEM.format("RSA PRIVATE", "RSA PRIVATE"),
        PEM.format("PRIVATE", "PRIVATE"),
        PEM[:200].format("EC PRIVATE"),
    ],
    "e-mail address": ["jane.doe@example.org", "j+news@mail.example.co.uk", "x@y-z.museum"],
    "phone number": [
        "+49 30 901820",
        "+442079460958",
        "+1 (201) 555-0123",
        "0049 30 90182-0",
        "(201) 555-0123",
        "201-555-0123",
        "1-800-555-0199",
        "201.555.0123",
        "020 7946 0958",
        "030/901 82 01",
        "06 12 34 56 78",
    ],
    "card number": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011000990139424",
        "4000 0000 0000 0000 006",
    ],
    "IBAN": ["DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19", "NO93 8601 1117 947", "BE68 5390 0754 7034"],
}
SAMPLES = [text for texts in FOUND.values() for text in texts]
FOUND_IN_ASSIGNMENT = [
    ("password = {}", drawn(16)),
    ('API_KEY="{}"', drawn(32, string.hexdigits[:16])),
    ("client-secret: {}", drawn(40)),
    ("{{'auth_token': '{}'}}", drawn(24)),
]
NOT_FOUND = [
    "AKIAWHATEVER",
    "the shk-learn and sk-learn-pipelines-for-everyday-tasks packages",
    "hf_hub_download, hf_transfer",
    "glpat-",
    "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
    "eyJub3QiOiJhIHRva2VuIn0.eyJub3QiOiJhIHRva2VuIn0.0123456789abcdefghijk",
    "password = get_password_from_environment1()",
    "api_key = os.environ['OPENAI_API_KEY_2']",
    'secret: "your-secret-key-here-123456"',
    "password: short1",
    "secret: yourK3yG0esH3re4U2",
    "password = a1a1a1a1a1a1a1a1a1",
    "trains at 08.30 12.45 16.20",
    "@property and user@localhost and a@b",
    "5 apples @ $3.50",
    "4111111111111112",
    "4111 1111 1111 1112",
    "1234567812345670",
    "id 41111111111111110000000000000000",
    "0.4111111111111111",
    "DE89370400440532013001",
    "DE8937040044053201300",
    "from 2024-01-02 to 2024-02-03, at 10:30",
    "01.02.2024 10 20 30",
    "05/06/2023 123456",
    "10 + 20 + 300000 = 300030",
    "<<1000-200-30=770>>770 and +100.50-20.25-10.75",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "192.168.100.200 and version 10.20.30.40",
    "3.14159265358979 and 1,000,000,000",
    "+960397912423686",
]


def conversation(*contents: str) -> Example:
    turns = tuple(Message(role="user", content=content) for content in contents)
    return Example(row_id="a:1", kind="conversation", format="messages", messages=turns)


def check(example: Example, secrets: str = "report", personal_data: str = "report") -> Checked:
    spec = CleaningSpec.model_validate({"secrets": secrets, "personal_data": personal_data})
    return SensitiveText(spec).check([example])[0]


def redacted(text: str) -> str:
    return check(conversation(text), "redact", "redact").example.messages[0].content


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_each_kind_is_found_and_replaced_without_a_character_around_it(kind: str, text: str) -> None:
    row = conversation(f"here: {text}, is it?")
    assert check(row).found == (kind,)
    assert redacted(f"here: {text}, is it?") == f"here: [{kind}], is it?"


@pytest.mark.parametrize(("frame", "value"), FOUND_IN_ASSIGNMENT)
def test_of_an_assignment_only_the_value_is_secret(frame: str, value: str) -> None:
    assert check(conversation(frame.format(value))).found == ("password or key",)
    assert redacted(frame.format(value)) == frame.format("[password or key]")


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    row = conversation(text)
    assert check(row, "redact", "redact") == Checked(row, ())


def test_every_kind_has_a_sample_here_and_a_group() -> None:
    kinds = {pattern.kind for pattern in (*SECRETS, *PERSONAL)}
    assert kinds == {*FOUND, "password or key"}
    assert {kind_group(kind) for kind in ("private key", "password or key")} == {"secret"}
    assert {kind_group(kind) for kind in ("e-mail address", "phone number", "card number", "IBAN")} == {"personal"}


@settings(deadline=None, derandomize=True)
@given(st.text("0123456789", min_size=12, max_size=18), st.data())
def test_luhn_takes_one_check_digit_of_ten_and_notices_every_wrong_digit(body: str, data: st.DataObject) -> None:
    right = [digit for digit in "0123456789" if passes_luhn(body + digit)]
    assert len(right) == 1
    place = data.draw(st.integers(0, len(body) - 1))
    other = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != body[place]]))
    assert not passes_luhn(body[:place] + other + body[place + 1 :] + right[0])


def test_a_right_check_digit_is_not_enough_for_a_card() -> None:
    assert passes_luhn("1234567812345670")
    assert not is_card_number("1234567812345670")  # no issuer begins with 1
    assert passes_luhn("411111111111116")
    assert not is_card_number("411111111111116")  # no Visa card has 15 digits


@settings(deadline=None, derandomize=True)
@given(st.sampled_from([text.replace(" ", "") for text in FOUND["IBAN"]]), st.data())
def test_iban_notices_every_wrong_character_and_every_swap_of_neighbours(iban: str, data: st.DataObject) -> None:
    assert is_iban(iban)
    place = data.draw(st.integers(2, len(iban) - 2))
    alphabet = string.digits if iban[place].isdigit() else string.ascii_uppercase
    other = data.draw(st.sampled_from([character for character in alphabet if character != iban[place]]))
    assert not is_iban(iban[:place] + other + iban[place + 1 :])
    if iban[place] != iban[place + 1]:
        assert not is_iban(iban[:place] + iban[place + 1] + iban[place] + iban[place + 2 :])


def test_an_iban_has_its_countrys_length() -> None:
    # two characters more, and check digits that are right for them
    longer = next(
        f"DE{check:02}3704004405320130000" for check in range(98) if _mod_97(f"DE{check:02}3704004405320130000")
    )
    assert not is_iban(longer)


def _mod_97(iban: str) -> bool:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def test_random_values_are_told_from_names_in_code() -> None:
    draw = random.Random(0)
    values = ["".join(draw.choices(LETTERS, k=32)) for _ in range(1_000)]
    assert sum(map(is_random, values)) >= 970
    names = [
        "get_password_from_env1",
        "settings.SECRET_KEY_V2",
        "correct-horse-battery-9",
        "aaaaaaaaaaaaaaa1",
        "2024-01-01T00",
    ]
    assert not any(map(is_random, names))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(
        st.one_of(st.sampled_from(["so", "ein", "42", "a, b", "\n", "\u00fc"]), st.sampled_from(SAMPLES)),
        max_size=8,
    )
)
def test_redaction_leaves_the_rest_of_a_text_untouched(pieces: list[str]) -> None:
    kinds = {text: kind for kind, texts in FOUND.items() for text in texts}
    text = " | ".join(pieces)
    expected = " | ".join(f"[{kinds[piece]}]" if piece in kinds else piece for piece in pieces)
    result = check(conversation(text), "redact", "redact")
    assert result.example.messages[0].content == expected
    assert set(result.found) == {kinds[piece] for piece in pieces if piece in kinds}


SUSPICIOUS = st.one_of(
    st.tuples(st.text("a1._%+-", min_size=1), st.just("@"), st.text("a1-", min_size=1), st.just(".org")).map("".join),
    st.text(string.digits + " .-/+()", max_size=80),
    st.text("ab0129@.-+ :=[]_key", max_size=80),
    st.lists(st.sampled_from([*SAMPLES, " ", "-", "0", "key=", "+", "a"]), max_size=8).map("".join),
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(SUSPICIOUS)
def test_nothing_is_left_to_find_in_a_redacted_text(text: str) -> None:
    once = check(conversation(text), "redact", "redact")
    assert check(once.example, "redact", "redact") == Checked(once.example, ())


@settings(deadline=None, derandomize=True, max_examples=300)
@given(SUSPICIOUS)
def test_no_hint_hides_what_its_pattern_would_find(text: str) -> None:
    closely = {span.kind for pattern in (*SECRETS, *PERSONAL) for span in pattern.spans(text)}
    assert set(check(conversation(text)).found) == closely


def test_a_match_within_another_leaves_nothing_of_it_behind() -> None:
    secret = "a.b@mail.org#Xk3Jd8sQ2Lm"
    assert check(conversation(f"password={secret}")).found == ("e-mail address", "password or key")
    assert redacted(f"password={secret}, and on") == "password=[password or key], and on"


def test_every_text_of_an_example_is_looked_at() -> None:
    mail = "a.b@example.org"
    call = ToolCall(name="send", arguments=json.dumps({"to": mail}))
    places: list[dict[str, Any]] = [
        {"messages": (Message(role="system", content=mail), Message(role="user", content="x"))},
        {"messages": (Message(role="assistant", reasoning=mail, content="x"),)},
        {"messages": (Message(role="assistant", tool_calls=(call,)),)},
        {"messages": (Message(role="user", content="x"),), "rejected": (Message(role="assistant", content=mail),)},
        {"text": mail},
    ]
    for place in places:
        row = Example(row_id="a:1", kind="conversation", format="messages", **place)
        result = check(row, personal_data="redact")
        assert result.found == ("e-mail address",)
        assert mail not in result.example.model_dump_json()
        assert result.example.model_dump_json().count("[e-mail address]") == 1


def redacted_arguments(arguments: str) -> str:
    turn = Message(role="assistant", tool_calls=(ToolCall(name="f", arguments=arguments),))
    row = Example(row_id="a:1", kind="conversation", format="messages", messages=(turn,))
    return check(row, "redact", "redact").example.messages[0].tool_calls[0].arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (r'{"to":"x\na.b@example.org", "n": 1.50}', r'{"to":"x\n[e-mail address]", "n": 1.50}'),
        (r'{"to": "a.b\u0040example.org"}', '{"to": "[e-mail address]"}'),
        ('{"to": "\u2013 a.b@example.org"}', '{"to": "\u2013 [e-mail address]"}'),
        (r'{"to": "\u2013 a.b@example.org"}', r'{"to": "\u2013 [e-mail address]"}'),
        ('{"card": 4111111111111111, "n": 41111111111111110}', '{"card": "[card number]", "n": 41111111111111110}'),
        ('{"a.b@example.org": [1,  2]}', '{"[e-mail address]": [1,  2]}'),
        (json.dumps({"key": FOUND["private key"][0]}), '{"key": "[private key]"}'),
        ('{"password": "q7Jx2Vb9Lm4Tz8Kp", "user": "jo"}', '{"password": "[password or key]", "user": "jo"}'),
        (r'{"json": "{\"password\": \"q7Jx2Vb9Lm4Tz8Kp\"}"}', r'{"json": "{\"password\": \"[password or key]\"}"}'),
        ('{"secret": 1.2345678901234e5, "t": true}', '{"secret": 1.2345678901234e5, "t": true}'),
    ],
)
def test_arguments_of_a_tool_call_stay_json_and_the_rest_of_them_as_it_was(arguments: str, expected: str) -> None:
    assert redacted_arguments(arguments) == expected
    json.loads(expected)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | SUSPICIOUS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "key", "password"]), inner),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["to", "token", "n"]), JSON_VALUES), st.booleans())
def test_arguments_stay_json_whatever_they_hold(arguments: dict[str, Any], ascii_only: bool) -> None:
    clean = redacted_arguments(json.dumps(arguments, ensure_ascii=ascii_only))
    assert json.loads(clean).keys() == arguments.keys()
    assert redacted_arguments(clean) == clean


def test_each_group_follows_its_own_policy() -> None:
    row = conversation(f"{FOUND['GitHub token'][0]} of jane.doe@example.org")
    both = ("GitHub token", "e-mail address")
    assert check(row, "off", "off") == Checked(row, ())
    assert check(row, "report", "off").found == both[:1]
    assert check(row, "off", "fail").found == both[1:]
    result = check(row, "redact", "report")
    assert result.found == both
    assert result.example.messages[0].content == "[GitHub token] of jane.doe@example.org"
    assert check(row, "fail", "report").example is row


def test_half_a_surrogate_pair_hides_nothing() -> None:
    assert redacted("\ud800 jane.doe@example.org") == "\ud800 [e-mail address]"


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is not here")
def test_sums_and_bank_questions_hold_no_false_alarm() -> None:
    rows = [line for name in ("train", "test") for line in (DATA / "gsm8k" / f"{name}.jsonl").read_text().splitlines()]
    texts = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, rows)]
    for name in ("train", "test"):
        with (DATA / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            texts += [row["text"] for row in csv.DictReader(stream)]
    assert len(texts) == 7_473 + 1_319 + 10_003 + 3_080
    checked = SensitiveText(CleaningSpec()).check([conversation(text) for text in texts])
    assert [(text, one.found) for text, one in zip(texts, checked, strict=True) if one.found] == []
