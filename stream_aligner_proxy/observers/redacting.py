"""Rules that take out what must not be written down.

A rule is a regular expression and what is put in its place. The same text of a record always
becomes the same text, so that a sentence that was kept is still the same as its original.

Some patterns take, for some texts, longer than anybody can wait. `regex` lets other threads work
while it matches, and can be stopped (`re` can do neither): what is not done in time is withheld.
"""

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import regex

_log = logging.getLogger(__name__)

WITHHELD = "[withheld]"
# Of CPU time, for all texts of a record. A million characters take all named rules 0.6 s.
SECONDS = 2.0

_Match = regex.Match[str]


def _luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _card(found: _Match) -> str:
    digits = regex.sub(r"\D", "", found[0])
    return "[card]" if 13 <= len(digits) <= 19 and _luhn(digits) else found[0]


def _phone(found: _Match) -> str:
    digits = regex.sub(r"\D", "", found[0])
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


_LOCAL = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]"  # a character before the @ (RFC 5322, atoms)

# What operators can name. Order matters: cards look like phone numbers.
NAMED: Mapping[str, tuple[str, str | Callable[[_Match], str]]] = MappingProxyType(
    {
        "keys": (
            r"\b(?:sk|pk|rk|ghp|gho|ghs|xox[abp]|glpat|hf)[-_][A-Za-z0-9_-]{16,}"
            r"|\bAKIA[0-9A-Z]{16}\b"
            # JWT and JWE. It takes what it has begun, so that it never looks at a text twice.
            r"|\beyJ[A-Za-z0-9_-]{10,}(?:\.{1,2}[A-Za-z0-9_-]+){0,4}"
            r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}=*",
            "[key]",
        ),
        "emails": (
            rf"(?<!{_LOCAL}){_LOCAL}+@[A-Za-z0-9.-]{{1,255}}\.[A-Za-z]{{2,24}}",
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


_Put = str | Callable[[_Match], str]


class Redaction:
    """`rules`: names of `NAMED`, or pairs of a pattern and what to write instead, in order.
    `seconds`: of CPU time for all texts of one record, about."""

    def __init__(self, rules: Iterable[str | tuple[str, str]], *, seconds: float = SECONDS) -> None:
        self.rules: Sequence[tuple[regex.Pattern[str], _Put]] = [
            (regex.compile(find), put)
            for find, put in (NAMED[rule] if isinstance(rule, str) else rule for rule in rules)
        ]
        self._seconds = seconds
        self._told = False

    def record(self) -> "Redacting":
        """For the texts of one record."""
        return Redacting(self.rules, self._seconds, self._took_too_long)

    def __call__(self, text: str) -> str:
        """One text alone."""
        return self.record()(text)

    def _took_too_long(self, rule: int) -> None:
        if not self._told:
            self._told = True
            _log.error(
                "audit.redact: longer than %g s for one record, in rule %d; "
                "texts that the rules are not done with are withheld",
                self._seconds,
                rule + 1,
            )


class Redacting:
    """Redacts the texts of one record, in one thread; `withheld` of them were not done in time, and
    are `WITHHELD` instead."""

    def __init__(
        self,
        rules: Sequence[tuple[regex.Pattern[str], _Put]],
        seconds: float,
        took_too_long: Callable[[int], None],
    ) -> None:
        self._rules = rules
        # The thread's CPU time: on a busy machine it is not the rules that are slow.
        self._until = time.thread_time() + seconds
        self._took_too_long = took_too_long
        self._known: dict[str, str] = {}  # most sentences come twice, as they were and as they are
        self.withheld = 0

    def __call__(self, text: str) -> str:
        written = self._known.get(text)
        if written is None:
            written = self._known[text] = self._redacted(text)
        return written

    def _redacted(self, text: str) -> str:
        for number, (pattern, put) in enumerate(self._rules):
            left = self._until - time.thread_time()
            try:
                if left <= 0:
                    raise TimeoutError
                # `concurrent`: without the interpreter's lock. The library measures `timeout` in
                # CPU time of the whole process, so it may come early, never late.
                text = pattern.sub(put, text, concurrent=True, timeout=left)
            except TimeoutError:
                self._took_too_long(number)
                self.withheld += 1
                return WITHHELD
        return text


def check_rule(find: str, replace: str) -> None:
    """Raises `ValueError` for what cannot be used."""
    try:
        pattern = regex.compile(find)
        # The library looks at `replace` when something is found: let the same groups be found.
        names = {number: name for name, number in pattern.groupindex.items()}
        groups = (f"(?P<{names[n]}>)" if n in names else "()" for n in range(1, pattern.groups + 1))
        regex.sub("".join(groups), replace, "")
    except (regex.error, IndexError, KeyError, ValueError) as error:
        raise ValueError(f"the pattern cannot be used: {error}") from None
