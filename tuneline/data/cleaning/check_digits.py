"""What tells a real number or key from one that merely looks like it: check digits, prefixes, entropy."""

import base64
import binascii
import json
import re
from collections import Counter
from itertools import pairwise
from math import log2
from typing import Final

CARD_NUMBER: Final = re.compile(
    r"""
      4(?: \d{12} | \d{15} | \d{18} )                                                # Visa: 13, 16, 19 digits
    | (?: 5[1-5]\d\d | 222[1-9] | 22[3-9]\d | 2[3-6]\d\d | 27[01]\d | 2720 ) \d{12}  # Mastercard: 16
    | 3[47] \d{13}                                                                   # American Express: 15
    | 3(?: 0[0-5] | [689]\d ) \d{11}                                                 # Diners Club: 14
    | (?: 6011 | 64[4-9]\d | 65\d\d ) (?: \d{12} | \d{15} )                          # Discover: 16, 19
    | 35(?: 2[89] | [3-8]\d ) (?: \d{12} | \d{15} )                                  # JCB: 16, 19
    | 62 \d{14,17}                                                                   # UnionPay: 16 to 19
    | (?: 5018 | 5020 | 5038 | 6304 | 6759 | 6761 | 6763 ) \d{9,15}                  # Maestro: 13 to 19
    """,
    re.VERBOSE | re.ASCII,
)
"""Issuer numbers and lengths that the networks publish (ISO/IEC 7812-1 gives the scheme)."""

IBAN_LENGTHS: Final[dict[int, str]] = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
"""Countries by the length of their account numbers (SWIFT IBAN Registry, ISO 13616)."""
COUNTRY_IBAN_LENGTH: Final = {
    country: length for length, countries in IBAN_LENGTHS.items() for country in countries.split()
}

MIN_SECRET_BITS: Final = 2.75
"""Shannon entropy of a random value, at least, in bits a character; 16 random hexadecimal digits have 3.2."""
MIN_SECRET_CHANGES: Final = 1 / 5
"""Changes between small letters, capitals and digits in a random value, at least, per character.

Entropy alone cannot tell a key from a name in code (`get_password_from_env1` has 3.9 bits a character); names change
once or twice. Of 16 characters drawn at random from 0-9a-f, 0-9a-z and 0-9a-zA-Z, 94, 89 and 94 % pass both tests; of
32, over 97 %.
"""
MIN_PHONE_DIGITS: Final = 8
MAX_PHONE_DIGITS: Final = 15
"""ITU-T E.164, 6.2."""
MAX_UNBROKEN_PHONE_DIGITS: Final = 13
"""Longer ones exist (Germany, Austria), but a + before 14 digits in a row is far more often a sum."""
PLACEHOLDER: Final = re.compile(
    r"your|example|change|placeholder|insert|dummy|sample|xxx|1234567|abcdef", re.IGNORECASE
)
"""Stands in the values that manuals show, and in 1 of 1,000 random ones of 40 characters."""


def is_card_number(text: str) -> bool:
    """Tell whether the digits of a text are a payment card's: a known issuer, its length, a right check digit."""
    digits = "".join(character for character in text if character in "0123456789")
    return CARD_NUMBER.fullmatch(digits) is not None and passes_luhn(digits)


def passes_luhn(digits: str) -> bool:
    """Check the last digit by Luhn's formula (ISO/IEC 7812-1, annex B)."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = [value * 2 - 9 * (value > 4) for value in values[1::2]]
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Tell whether a text, spaces aside, is an international bank account number (ISO 13616; mod 97 of ISO 7064)."""
    iban = text.replace(" ", "")
    if COUNTRY_IBAN_LENGTH.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def is_random(text: str) -> bool:
    """Tell whether a text looks drawn at random: high entropy, letters and digits mixed, no placeholder's words."""
    classes = "".join(_character_class(character) for character in text if character.isalnum())
    changes = sum(left != right for left, right in pairwise(classes))
    mixed = "0" in classes and changes >= MIN_SECRET_CHANGES * len(text)
    return mixed and entropy_bits(text) >= MIN_SECRET_BITS and PLACEHOLDER.search(text) is None


def _character_class(character: str) -> str:
    return "0" if character.isdigit() else "A" if character.isupper() else "a"


def entropy_bits(text: str) -> float:
    """Compute the Shannon entropy of a text's characters, in bits a character."""
    return sum(count / len(text) * log2(len(text) / count) for count in Counter(text).values())


def is_jwt(text: str) -> bool:
    """Tell whether a text begins with the header of a JSON Web Token: an object with `alg` (RFC 7515, 4.1.1)."""
    head = text.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(header, dict) and "alg" in header


def is_key_block(text: str) -> bool:
    """Tell whether a block between `BEGIN` and `END` holds a key, not the dots of a manual."""
    return re.search(r"[A-Za-z0-9+/]{32}", text) is not None


def is_phone_number(text: str) -> bool:
    """Tell whether a text has a phone number's digits (8 to 15, ITU-T E.164) in groups, and is no date and no sum."""
    separators = set(re.sub(r"[0-9+() ]", "", text))
    spaced_dots = "." in separators and " " in text
    date = re.match(r"\(?[0-9]{1,2}([./-])[0-9]{1,2}\1(?:19|20)[0-9]{2}(?![0-9])", text)
    digits = re.sub(r"[^0-9]", "", text)
    most = MAX_PHONE_DIGITS if len(digits) < len(text) - 1 else MAX_UNBROKEN_PHONE_DIGITS
    return MIN_PHONE_DIGITS <= len(digits) <= most and len(separators) <= 1 and not spaced_dots and date is None
