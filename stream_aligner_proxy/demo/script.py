"""Scripts for the scripted upstream: what it answers, as data. Pure: no I/O but `load`.

A script is a YAML mapping:

    model: scripted          # the id it serves
    prefill: continues       # continues | repeats | restarts | rejects
    chunk: {by: words}       # words | characters | tokens | random; size, seed
    pace: 0.0                # seconds before each chunk
    rules:                   # the first that matches is used
      - when: "(?i)train"    # regex searched in the last message of a user or tool; default: all
        after: "12 left\\.$"  # regex searched in the prefix; such a rule answers continuations only
        reply: " So 12 are left."

A rule may also hold `seed` (it answers only requests with this seed), `reasoning` (sent before the
text), `refusal`, `function_call` and `tool_calls` (sent after it, as OpenAI writes them), `parts`
(how these are cut, like `chunk`; calls that are cut take turns; by default each is one piece),
`finish_reason`, and its own `chunk`, `pace` and `fault` (see `Fault`).

Continuing (`continues`, `repeats`): a rule with `after` gives the new text itself. Any other rule
gives the whole reply, which is resumed where the prefix ends if the reply begins with the prefix,
otherwise after as many sentences (up to `.!?` before whitespace or the end) as the prefix has; one
that it only begins counts.

Tokens are counted by `tokens`: up to six letters or digits, or one other sign, each with the
whitespace before it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from stream_aligner_proxy.core.errors import ConfigError

Prefill = Literal["continues", "repeats", "restarts", "rejects"]
ChunkBy = Literal["words", "characters", "tokens", "random"]
Stall = Literal["headers", "first"]

_TOKEN = re.compile(r"\s*[^\W_]{1,6}|\s*\S|\s+")
_WORD = re.compile(r"\s*\S+|\s+")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def tokens(text: str) -> list[str]:
    """The text cut into what this upstream counts as tokens; joined they are the text."""
    return _TOKEN.findall(text)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a reply is cut: `size` words, characters or tokens a chunk, or 1 to `size` characters."""

    by: ChunkBy = "words"
    size: int = 1
    seed: int = 0

    def cut(self, text: str) -> list[str]:
        if self.by == "random":
            dice, pieces, at = random.Random(self.seed), [], 0
            while at < len(text):
                step = dice.randint(1, max(self.size, 1))
                pieces.append(text[at : at + step])
                at += step
            return pieces
        units = (
            list(text)
            if self.by == "characters"
            else tokens(text)
            if self.by == "tokens"
            else _WORD.findall(text)
        )
        return ["".join(units[i : i + self.size]) for i in range(0, len(units), self.size)]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. Numbers are text chunks sent before it happens.

    `status` with `body` (JSON or text) and `headers`: refuse. `stall`: before the headers, before
    the first event, or after that many chunks, until the client leaves. `hold`: the same, until
    `ScriptedUpstream.release`. `reset`: cut the connection. `error_after`: send `error` as an error
    frame and end. `garbage_after`: send `garbage` as raw bytes. `json_answer`: ignore `stream`.
    `linger`: say no more after the finish reason, and keep the connection open.
    `done: false` and `finish: false` leave out `[DONE]` and the finish reason; `newline` ends
    lines.
    """

    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stall: Stall | int | None = None
    hold: int | None = None
    reset: int | None = None
    error_after: int | None = None
    error: Any = field(default_factory=lambda: {"message": "scripted error", "type": "scripted"})
    garbage_after: int | None = None
    garbage: str = "data: {not json\n\n"
    json_answer: bool = False
    linger: bool = False
    done: bool = True
    finish: bool = True
    newline: str = "\n"


@dataclass(frozen=True, slots=True)
class Rule:
    """One answer and when it is given."""

    reply: str = ""
    when: str = ""
    after: str | None = None
    seed: int | None = None
    reasoning: str = ""
    refusal: str = ""
    function_call: Mapping[str, Any] | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    chunk: Chunking | None = None
    parts: Chunking | None = None
    pace: float | None = None
    fault: Fault = field(default_factory=Fault)


@dataclass(frozen=True, slots=True)
class Script:
    """All rules, and the defaults for those that do not say."""

    rules: Sequence[Rule] = ()
    model: str = "scripted"
    prefill: Prefill = "continues"
    chunk: Chunking = field(default_factory=Chunking)
    pace: float = 0.0

    def choose(self, question: str, prefix: str, seed: int | None = None) -> Rule:
        """The first rule that matches; one that echoes the question where none does."""
        for rule in self.rules:
            if rule.seed is not None and rule.seed != seed:
                continue
            if rule.after is not None and not (prefix and re.search(rule.after, prefix)):
                continue
            if re.search(rule.when, question):
                return rule
        return Rule(reply=question)


def resume(rule: Rule, prefix: str) -> str:
    """The new text of `rule` after `prefix`; see the module's docstring."""
    if rule.after is not None or not prefix:
        return rule.reply
    if rule.reply.startswith(prefix):
        return rule.reply[len(prefix) :]
    said = [match.end() for match in _SENTENCE_END.finditer(prefix)]
    # What is begun counts: no continuation says a sentence once more.
    done = len(said) + (not said or said[-1] < len(prefix.rstrip()))
    ends = [match.end() for match in _SENTENCE_END.finditer(rule.reply)]
    return rule.reply[ends[done - 1] :] if done <= len(ends) else ""


def load(path: Path) -> Script:
    """Read a script. Raises `ConfigError` naming the key that is wrong."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name}: cannot be read: {error}") from error
    return parse(value)


def parse(value: Any) -> Script:
    """A script from its mapping. Raises `ConfigError` naming the key that is wrong."""
    fields = _known(Script, value, "script")
    rules = fields.get("rules") or []
    if not isinstance(rules, list):
        raise ConfigError("script.rules: must be a list")
    fields["rules"] = [_rule(rule, f"script.rules[{i}]") for i, rule in enumerate(rules)]
    if "chunk" in fields:
        fields["chunk"] = _chunking(fields["chunk"], "script.chunk")
    if fields.get("prefill", "continues") not in get_args(Prefill):
        raise ConfigError(f"script.prefill: must be one of {', '.join(get_args(Prefill))}")
    return Script(**fields)


def _rule(value: Any, key: str) -> Rule:
    fields = _known(Rule, value, key)
    for name in ("when", "after"):
        try:
            re.compile(fields.get(name) or "")
        except (re.error, TypeError) as error:
            raise ConfigError(f"{key}.{name}: not a regular expression: {error}") from error
    for name in ("chunk", "parts"):
        if fields.get(name) is not None:
            fields[name] = _chunking(fields[name], f"{key}.{name}")
    if "fault" in fields:
        fields["fault"] = Fault(**_known(Fault, fields["fault"], f"{key}.fault"))
    return Rule(**fields)


def _chunking(value: Any, key: str) -> Chunking:
    chunking = Chunking(**_known(Chunking, value, key))
    if chunking.by not in get_args(ChunkBy):
        raise ConfigError(f"{key}.by: must be one of {', '.join(get_args(ChunkBy))}")
    return chunking


def _known(kind: type, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: must be a mapping")
    names = kind.__slots__  # type: ignore[attr-defined]
    for name in value:
        if name not in names:
            raise ConfigError(f"{key}.{name}: unknown key; known: {', '.join(names)}")
    return dict(value)
