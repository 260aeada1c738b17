"""Rules that take out what must not be written down. Pure.

A rule is a regular expression and what is put in its place. The same text always becomes the same
text, so that a sentence that was kept is still the same as its original.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

_Match = re.Match[str]


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _card(found: _Match) -> str:
    digits = re.sub(r"\D", "", found[0])
    return "[card]" if 13 <= len(digits) <= 19 and _luhn(digits) else found[0]


def _phone(found: _Match) -> str:
    digits = re.sub(r"\D", "", found[0])
    return "[phone]" if 8 <= len(digits) <= 15 else found[0]


def _ip(found: _Match) -> str:
    """A time of day looks like the beginning of one."""
    # A full stop or a colon at its end is the sentence's, unless the address ends with "::".
    text = found[0].rstrip(".")
    for address in (text, text.rstrip(":")):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            continue
        return "[ip]" + found[0][len(address) :]
    return found[0]


# What operators can name. Order matters: cards look like phone numbers.
NAMED: Mapping[str, tuple[str, str | Callable[[_Match], str]]] = MappingProxyType(
    {
        "keys": (
            r"\b(?:sk|pk|rk|ghp|gho|ghs|xox[abp]|glpat|hf)[-_][A-Za-z0-9_-]{16,}"
            r"|\bAKIA[0-9A-Z]{16}\b"
            r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"
            r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*",
            "[key]",
        ),
        "emails": (
            r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}\.[A-Za-z]{2,24}",
            "[email]",
        ),
        "ips": (
            r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,8})"
            r"(?![\w:])",
            _ip,
        ),
        "cards": (r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)", _card),
        "phones": (r"(?<![\w.])(?:\+|00)?\(?\d(?:[ ()/.-]{0,2}\d){7,14}(?![\w])", _phone),
    }
)


class Redaction:
    """`rules`: names of `NAMED`, or pairs of a pattern and what to write instead, in order."""

    def __init__(self, rules: Iterable[str | tuple[str, str]]) -> None:
        self._rules: Sequence[tuple[re.Pattern[str], str | Callable[[_Match], str]]] = [
            (re.compile(find), put)
            for find, put in (NAMED[rule] if isinstance(rule, str) else rule for rule in rules)
        ]

    def __call__(self, text: str) -> str:
        for pattern, put in self._rules:
            text = pattern.sub(put, text)
        return text
