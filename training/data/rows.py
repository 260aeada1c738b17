"""The two kinds of training rows, and how each is written as a JSON object.

A `Row` is one review of one sentence; a `Whole` one review of a whole answer. Both hold what the
proxy would show the aligner, so nothing here has leading or trailing whitespace but `prefix`, which
is the committed text as it was delivered.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from stream_aligner_proxy.core.edits import edit_distance
from stream_aligner_proxy.core.records import Turn

Kind = Literal["keep", "fix", "delete", "insert", "merge", "end"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class BadRecord(Exception):
    """A record that cannot be read; the message says which field and why."""


class SetAside(Exception):
    """A sound record that this source has no use for; the message says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One review: after `prefix`, the sentence `last` should be `correction`.

    `correction` equals `last` for keep and is "" for a deletion; `end`: the reply should end after
    it. `group` is the question's identity: rows of one group are never split.
    """

    question: tuple[Turn, ...]
    prefix: str
    last: str
    correction: str
    end: bool
    kind: Kind
    source: str
    group: str

    @property
    def kept(self) -> bool:
        return self.kind == "keep"


@dataclass(frozen=True, slots=True)
class Whole:
    """One review of a whole answer; the correction equals the answer where nothing was wrong."""

    question: tuple[Turn, ...]
    answer: str
    correction: str
    source: str
    group: str

    @property
    def kept(self) -> bool:
        return self.answer == self.correction


Example = Row | Whole
Form = Literal["sentence", "whole"]


def form(example: Example) -> Form:
    return "sentence" if isinstance(example, Row) else "whole"


def label(example: Example) -> str:
    """The kind as the report counts it; whole answers are `keep` or `fix`."""
    if isinstance(example, Row):
        return example.kind
    return "keep" if example.kept else "fix"


def before(example: Example) -> str:
    """The text that was reviewed."""
    return example.last if isinstance(example, Row) else example.answer


def edit_share(a: str, b: str) -> float:
    """Levenshtein's distance over the longer length: 0 for equal texts, 1 for nothing in common."""
    longest = max(len(a), len(b))
    return edit_distance(a, b, longest) / longest if longest else 0.0


_SPACE = re.compile(r"\s+")
_NOT_WORD = re.compile(r"[\W_]+")


def normal(text: str) -> str:
    """Text up to case, width and whitespace. Signs stay: `2+2` is not `2-2`."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def words(text: str) -> list[str]:
    """The words of a question, for telling whether two are the same one."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()


def key_text(question: Sequence[Turn]) -> str:
    """What makes a conversation the one it is: its first user message, so that all turns of one
    conversation fall into one group. "" where there is no question: then the group is all that
    is known of it."""
    return next((turn.text for turn in question if turn.role == "user"), "")


def group_of(key: str) -> str:
    """16 hex digits that identify a question up to case, punctuation and whitespace."""
    # Half a surrogate pair has no bytes of its own; `sound` says so of the example that holds it.
    name = (" ".join(words(key)) or key).encode(errors="surrogatepass")
    return hashlib.sha256(name).hexdigest()[:16]


def conversation(value: Any) -> tuple[Turn, ...]:
    """A question as a record has it: a text, or a list of messages. Raises `BadRecord`."""
    if isinstance(value, str):
        if not value.strip():
            raise BadRecord("the question is empty")
        return (Turn("user", value.strip()),)
    if not isinstance(value, Sequence) or not value:
        raise BadRecord("the question must be a text or a list of messages")
    turns = []
    for at, message in enumerate(value):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise BadRecord(f"message {at} of the question needs a text as role and as content")
        turns.append(Turn(role, text))
    return tuple(turns)


def text_of(record: Mapping[str, Any], *names: str, empty: bool = False) -> str:
    """The first of these fields that is there. Raises `BadRecord` where it is no text."""
    for name in names:
        if name in record and record[name] is not None:
            value = record[name]
            if not isinstance(value, str):
                raise BadRecord(f"{name!r} must be a text, not {type(value).__name__}")
            if not empty and not value.strip():
                raise BadRecord(f"{name!r} is empty")
            return value
    raise BadRecord(f"no {' or '.join(repr(name) for name in names)}")


def to_dict(example: Example) -> dict[str, Any]:
    """Plain data in a fixed order of keys."""
    question = [{"role": turn.role, "content": turn.text} for turn in example.question]
    if isinstance(example, Whole):
        return {
            "question": question,
            "answer": example.answer,
            "correction": example.correction,
            "source": example.source,
            "group": example.group,
        }
    return {
        "question": question,
        "prefix": example.prefix,
        "last": example.last,
        "correction": example.correction,
        "end": example.end,
        "kind": example.kind,
        "source": example.source,
        "group": example.group,
    }


def from_dict(data: Mapping[str, Any]) -> Example:
    """The inverse of `to_dict`; `source` and `group` may be missing. Raises `BadRecord`."""
    question = conversation(data.get("question")) if data.get("question") != [] else ()
    source = text_of(data, "source") if data.get("source") is not None else "rows"
    told = data.get("group")
    group = told or group_of(key_text(question) or str(data.get("answer") or data.get("last")))
    if not isinstance(group, str):
        raise BadRecord("'group' must be a text")
    if "answer" in data:
        answer = text_of(data, "answer").strip()
        correction = text_of(data, "correction", empty=True).strip()
        return sound(Whole(question, answer, correction, source, group))
    last, end = text_of(data, "last").strip(), data.get("end", False)
    correction = text_of(data, "correction", empty=True).strip()
    prefix = text_of(data, "prefix", empty=True)
    if not isinstance(end, bool):
        raise BadRecord("'end' must be true or false")
    kind = data.get("kind") or kind_of(last, correction, end)
    if kind not in KINDS:
        raise BadRecord(f"'kind' must be one of {', '.join(KINDS)}, not {kind!r}")
    if (kind == "keep") != (last == correction and not end):
        raise BadRecord(f"'kind' is {kind!r}, which 'last', 'correction' and 'end' contradict")
    return sound(Row(question, prefix, last, correction, end, kind, source, group))


def sound(example: Example) -> Example:
    """The same example. Raises `BadRecord` where a text holds half a surrogate pair, as a bad byte
    becomes when it is read: no file can hold it and no tokenizer read it."""
    texts = [part for turn in example.question for part in (turn.role, turn.text)]
    texts += [example.correction, example.source, example.group]
    texts += [example.prefix, example.last] if isinstance(example, Row) else [example.answer]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRecord(
                f"a text is not UTF-8: {error.object[error.start]!r} at character {error.start}"
            ) from None
    return example


def kind_of(last: str, correction: str, end: bool) -> Kind:
    """The kind of a row of which no more is known than its texts."""
    if end and (not correction or correction == last):
        return "end"
    if not correction:
        return "delete"
    if correction == last:
        return "keep"
    return "insert" if last in correction else "fix"


def digest(example: Example, *, normalised: bool = False) -> bytes:
    """16 bytes that stand for what the example teaches (not for where it comes from)."""
    parts = [f"{turn.role}\0{turn.text}" for turn in example.question]
    parts.append("\1")
    if isinstance(example, Row):
        parts += [example.prefix, example.last, example.correction, str(example.end)]
    else:
        parts += [example.answer, example.correction]
    text = "\0".join(normal(part) if normalised else part for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
