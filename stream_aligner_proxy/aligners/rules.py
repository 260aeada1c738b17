"""Find and replace: a deterministic aligner for house style, read from a YAML file.

The file is a list of rules, applied in order to the sentence (or to the whole answer):

    - {find: '\\butili[sz]e\\b', replace: use}
    - {find: '(?i)\\bas an ai\\b.*', replace: '', end: true, name: no-self-talk}

`find` is a regular expression of Python's `re`; `replace` may refer to its groups (`\\1`,
`\\g<name>`). `end: true` ends the reply after a sentence in which the rule matched. Where nothing
changed the verdict is keep.

Why this runs on the event loop: `re` holds the interpreter lock while it matches, so a thread would
stop the loop just the same, and nothing can interrupt a match: no deadline helps against a pattern
that backtracks without end. The rules are the operator's own file and a sentence is bounded
(`max_sentence_chars`), so a match takes microseconds; a rule that takes longer than `SLOW_SECONDS`
is named in the log. Between the rules of a long text the loop gets a turn.
"""

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import NEUTRAL, Review, Scope, Verdict
from stream_aligner_proxy.strictyaml import load_yaml

log = logging.getLogger(__name__)

SLOW_SECONDS = 0.1
LONG_CHARS = 10_000

_KEYS = {"find": str, "replace": str, "end": bool, "name": str}
_REQUIRED = ("find", "replace")


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the file."""

    find: re.Pattern[str]
    replace: str
    end: bool = False
    name: str = ""


class RulesAligner:
    """Applies the rules of one file. Thread-free; see the module's note on slow patterns."""

    scopes: frozenset[Scope] = frozenset(("sentence", "whole"))
    strengths = (NEUTRAL, NEUTRAL)

    def __init__(self, path: str | Path, *, name: str = "rules") -> None:
        self._path = Path(path)
        self._rules: tuple[Rule, ...] = ()
        self.name = name
        self.ready = False

    async def start(self) -> None:
        """Read the file. Raises `ConfigError` naming the file, the entry and the key."""
        self._rules = await asyncio.to_thread(load_rules, self._path)
        self.ready = True

    def expect(self, review: Review) -> None:
        """Nothing to prepare."""

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        text, end = review.sentence, False
        for rule in self._rules:
            started = time.perf_counter()
            text, hits = rule.find.subn(rule.replace, text)
            seconds = time.perf_counter() - started
            if seconds > SLOW_SECONDS:
                log.warning("rule %s took %.2f s on %d characters", rule.name, seconds, len(text))
            end = end or (rule.end and hits > 0)
            if len(text) > LONG_CHARS:
                await asyncio.sleep(0)
        text = text.strip()
        return Verdict(None if text == review.sentence else text, end)

    async def close(self) -> None:
        """Nothing to release."""


def load_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of `path`. Raises `ConfigError` for anything that is not a list of rules."""
    where = f"aligner.path: {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    entries = load_yaml(text, where)
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: must be a list of {{find, replace}} entries")
    return tuple(
        _rule(entry, f"{where}: entry {number}", number) for number, entry in enumerate(entries, 1)
    )


def _rule(entry: Any, where: str, number: int) -> Rule:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must be a mapping with find and replace")
    for key, value in entry.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            kind = "true or false" if _KEYS[key] is bool else "a string"
            raise ConfigError(f"{where}: key {key!r} must be {kind}, not {value!r}")
    for key in _REQUIRED:
        if key not in entry:
            raise ConfigError(f"{where}: key {key!r} is missing")
    if any(ord(character) < 32 and character not in "\t\n\r" for character in entry["find"]):
        raise ConfigError(
            f"{where}: key 'find' holds a control character; in double quotes YAML reads "
            "\\b as one: use single quotes"
        )
    if not entry["find"]:
        raise ConfigError(f"{where}: key 'find' is empty")
    try:
        find = re.compile(entry["find"])
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: key 'find' is not a regular expression: {error}") from error
    try:
        # `sub` reads its template before it looks for a match: this finds bad group references.
        find.sub(entry["replace"], "")
    except (re.error, IndexError) as error:
        raise ConfigError(f"{where}: key 'replace': {error}") from error
    return Rule(find, entry["replace"], entry.get("end", False), entry.get("name", f"{number}"))
