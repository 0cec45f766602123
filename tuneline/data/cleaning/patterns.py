"""What secrets and personal data look like, with the source of each pattern."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from tuneline.data.cleaning.check_digits import (
    IBAN_LENGTHS,
    is_card_number,
    is_iban,
    is_jwt,
    is_key_block,
    is_phone_number,
    is_random,
)

Group = Literal["secret", "personal"]


@dataclass(frozen=True)
class Span:
    """A place in a text where a kind was found."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Pattern:
    """One way in which a kind is written.

    `hint` is found (by RE2, over thousands of rows at once) in every text in which `regex` is; `accept` has the last
    word on a match. Where `regex` has a group `value`, only that is secret.
    """

    kind: str
    group: Group
    hint: str
    regex: re.Pattern[str]
    source: str
    accept: Callable[[str], bool] = bool

    @property
    def is_assignment(self) -> bool:
        """Whether the pattern is a name with its value, of which only the value is secret."""
        return "value" in self.regex.groupindex

    def spans(self, text: str) -> Iterator[Span]:
        """Find the places in a text."""
        part = "value" if self.is_assignment else 0
        for match in self.regex.finditer(text):
            if self.accept(match[part]):
                yield Span(*match.span(part), self.kind)


def _secret(kind: str, hint: str, regex: str, source: str, accept: Callable[[str], bool] = bool) -> Pattern:
    return Pattern(kind, "secret", hint, re.compile(regex, re.ASCII), source, accept)


def _personal(kind: str, hint: str, regex: str, source: str, accept: Callable[[str], bool] = bool) -> Pattern:
    return Pattern(kind, "personal", hint, re.compile(regex, re.ASCII), source, accept)


def _iban_regex() -> str:
    # a length per country, so that a number ends where it should and not with the next word
    ways = (
        f"(?:{countries.replace(' ', '|')})[0-9]{{2}}(?: ?[A-Z0-9]){{{length - 4}}}"
        for length, countries in IBAN_LENGTHS.items()
    )
    return f"(?<![A-Za-z0-9])(?:{'|'.join(ways)})(?![A-Za-z0-9])"


SECRETS: Final = (
    _secret(
        "AWS access key",
        "(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{4}",
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])",
        "AWS IAM User Guide, unique identifiers: prefixes of access keys, then 16 base-32 digits",
    ),
    _secret(
        "GitHub token",
        "gh[pousr]_|github_pat_",
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})(?![A-Za-z0-9])",
        "GitHub blog, Behind GitHub's new authentication token formats (2021); up to 255 characters",
    ),
    _secret(
        "GitLab token",
        "gl[a-z]{2,5}-",
        r"(?<![A-Za-z0-9])gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct)-[A-Za-z0-9_.-]{19,}[A-Za-z0-9_]",
        "GitLab documentation, security, tokens, token prefixes; 20 characters and more",
    ),
    _secret(
        "Slack token",
        "xox[abeoprs]|xapp-",
        r"(?<![A-Za-z0-9])(?:xox[abeoprs](?:\.xox[bp])?|xapp)-[0-9A-Za-z]+-[0-9A-Za-z-]{8,}",
        "Slack developer documentation, authentication, tokens: types by prefix",
        lambda text: re.search(r"[0-9]{5}", text) is not None,
    ),
    _secret(
        "sk- API key",
        "sk-[A-Za-z0-9_-]{20}",
        r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}",
        "OpenAI (sk-, sk-proj-, sk-svcacct-), Anthropic (sk-ant-) and OpenRouter (sk-or-) keys; no format is published",
        is_random,
    ),
    _secret(
        "Google API key",
        "AIza",
        r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
        "Google Cloud documentation, API keys: 39 characters that begin with AIza",
    ),
    _secret(
        "Stripe key",
        "[sr]k_(?:live|test)_",
        r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
        "Stripe documentation, API keys: secret and restricted keys by prefix (publishable ones, pk_, are public)",
    ),
    _secret(
        "Hugging Face token",
        "hf_[A-Za-z0-9]{30}",
        r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,40}(?![A-Za-z0-9_])",
        "Hugging Face Hub documentation, user access tokens: hf_ and 34 letters",
    ),
    _secret(
        "JSON Web Token",
        r"eyJ[A-Za-z0-9_-]+\.",
        r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}",
        "RFC 7519 and RFC 7515, 3.1: three base64url parts, the first of them a JSON object",
        is_jwt,
    ),
    _secret(
        "private key",
        "PRIVATE KEY",
        # with its END within 16 KB, or cut off: then the lines of base64 that follow
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[\s\S]{0,16384}?-----END [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----|(?:(?:\s|\\n)*[A-Za-z0-9+/=]{32,})+)",
        "RFC 7468 (PKCS 1, PKCS 8, SEC 1 keys), OpenSSH PROTOCOL.key, RFC 9580 (OpenPGP)",
        is_key_block,
    ),
    _secret(
        "password or key",
        r"(?i)(?:passw|pwd|secret|token|key)[a-z_\\\"'`]{0,12}[ \t\r\n]{0,3}[:=]",
        r"(?i)(?:password|passwd|pwd|secret|token|(?:api|access|auth|private|secret)[_-]?key)[\"'`]?[ \t\r\n]{0,3}"
        r"(?:=>|:=|[:=])[ \t\r\n]{0,3}[\"'`]?(?P<value>[A-Za-z0-9+/=_.~!@#$%^&*-]{16,})",
        "an assignment to a name for secrets, of 16 characters and more that look random",
        is_random,
    ),
)

PERSONAL: Final = (
    _personal(
        "e-mail address",
        "[A-Za-z0-9._%+-]@[A-Za-z0-9]",
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
        r"[A-Za-z]{2,24}(?![A-Za-z0-9])",
        "RFC 5321, 4.5.3.1 (64 characters before the @), RFC 1035, 2.3.1 (labels of a domain)",
    ),
    _personal(
        "phone number",
        r"\+\(?[1-9](?:[ .()/-]{0,2}[0-9]){7}|00[1-9][0-9]{0,2}[ /-]",
        r"(?<![\w+.])(?:\+\(?[1-9]|00[1-9](?=[0-9]{0,2}[ /-]))(?:[ .()/-]{0,2}[0-9]){7,14}(?!\w|[.,-][0-9])",
        "ITU-T E.123, 2.2 and E.164: international form, + (or 00) and 8 to 15 digits",
        is_phone_number,
    ),
    _personal(
        "phone number",
        r"[0-9]{3}\)?[ .-]?[0-9]{3}[ .-][0-9]{4}",
        r"(?<![\w.+/-])(?:1[ .-])?(?:\([0-9]{3}\)[ -]?[0-9]{3}[ .-]|[0-9]{3}[ -][0-9]{3}-|[0-9]{3}\.[0-9]{3}\.)[0-9]{4}"
        r"(?!\w|[.,-][0-9])",
        "North American Numbering Plan: area code and seven digits, as (201) 555-0123 or 201-555-0123",
    ),
    _personal(
        "phone number",
        r"0[1-9][0-9]{0,4}\)?[ /.-][0-9]{2}",
        r"(?<![\w.,+/-])(?:\(0[1-9][0-9]{0,4}\)|0[1-9][0-9]{0,4})(?:[ /.-][0-9]{2,8}){1,5}(?!\w|[.,/-][0-9])",
        "ITU-T E.123, 2.1: national form with the trunk prefix 0, in groups; 9 digits and more",
        lambda text: is_phone_number(text) and sum(map(str.isdigit, text)) >= 9,
    ),
    _personal(
        "card number",
        r"[0-9]{13}",
        r"(?<![\w.])[0-9]{13,19}(?!\w|\.[0-9])",
        "ISO/IEC 7812-1, unbroken",
        is_card_number,
    ),
    _personal(
        "card number",
        r"[0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4}",
        r"(?<![\w.])[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?!\w|\.[0-9])",
        "ISO/IEC 7812-1, 16 digits in fours",
        is_card_number,
    ),
    _personal(
        "card number",
        r"[0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{3}",
        r"(?<![\w.])[0-9]{4}([ -])(?:[0-9]{4}\1){3}[0-9]{3}(?!\w|\.[0-9])",
        "ISO/IEC 7812-1, 19 digits in fours",
        is_card_number,
    ),
    _personal(
        "card number",
        r"3[0-9]{3}[ -][0-9]{6}[ -][0-9]{4}",
        r"(?<![\w.])3[0-9]{3}([ -])[0-9]{6}\1[0-9]{4,5}(?!\w|\.[0-9])",
        "American Express (4, 6, 5 digits) and Diners Club (4, 6, 4)",
        is_card_number,
    ),
    _personal(
        "IBAN",
        "[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4} ?[A-Z0-9]{3}",
        _iban_regex(),
        "ISO 13616: a country, two check digits, and as many characters as that country's banks use",
        is_iban,
    ),
)
