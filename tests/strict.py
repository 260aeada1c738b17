"""A strict reader of event streams, and what must hold of a chat stream, frame by frame."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

_LINES = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Event:
    """One event as the HTML standard reads it."""

    data: str
    name: str = ""


class Reader:
    """Bytes in, however they are cut; events out. Raises `AssertionError` for what is not text,
    for a field that does not exist, and at the end for an event without its blank line."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._name = ""

    def feed(self, data: bytes) -> list[Event]:
        self._rest += data
        found = []
        # A CR at the very end may be half of a CRLF.
        whole = self._rest[:-1] if self._rest.endswith(b"\r") else self._rest
        at = 0
        for match in _LINES.finditer(whole):
            if match.end() == len(whole) < len(self._rest) and match.group() == b"\r":
                break
            line, at = whole[at : match.start()], match.end()
            if event := self._line(line):
                found.append(event)
        self._rest = self._rest[at:]
        return found

    def close(self) -> None:
        assert not self._rest, f"the stream ends in the middle of a line: {self._rest!r}"
        assert not self._data, "the stream ends in the middle of an event"

    def _line(self, line: bytes) -> Event | None:
        text = line.decode()  # UTF-8, or an error
        if not text:
            event = Event("\n".join(self._data), self._name) if self._data else None
            self._data, self._name = [], ""
            return event
        if text.startswith(":"):
            return None
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        assert field in ("data", "event", "id", "retry"), f"an unknown field: {text!r}"
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None


def events(pieces: Iterable[bytes]) -> list[Event]:
    """All events of a stream that has ended."""
    reader = Reader()
    found = [event for piece in pieces for event in reader.feed(piece)]
    reader.close()
    return found


@dataclass
class Choice:
    """What one choice of a chat stream came to."""

    text: str = ""
    finish_reason: str | None = None


def chat(found: list[Event], *, usage: bool = False) -> tuple[dict[int, Choice], dict | None]:
    """What a chat stream says, by choice, and its error if it ends with one.

    Asserts the order that clients rely on: one id; a role first, once, before anything else of its
    choice; nothing after a finish reason; a delta in every choice; usage last but one, alone, and
    null before; `[DONE]` last and once.
    """
    assert found, "an empty stream"
    assert all(not event.name for event in found)
    assert found[-1].data == "[DONE]"
    assert [event.data for event in found].count("[DONE]") == 1
    frames = [orjson.loads(event.data) for event in found[:-1]]
    error = None
    if frames and "error" in frames[-1]:
        error = frames.pop()["error"]
        assert set(error) == {"message", "type", "param", "code"}
    told = None
    if usage and error is None:
        told = frames.pop()
        assert told["choices"] == []
        counts = told["usage"]
        assert counts["total_tokens"] >= counts["prompt_tokens"] + counts["completion_tokens"]
    choices: dict[int, Choice] = {}
    for frame in frames:
        assert {"id", "object", "created", "model", "choices"} <= set(frame), frame
        assert frame["object"] == "chat.completion.chunk"
        assert isinstance(frame["created"], int)
        assert (frame["id"], frame["model"]) == (frames[0]["id"], frames[0]["model"])
        assert len(frame["choices"]) == 1, "one choice in each chunk"
        if usage:
            assert frame["usage"] is None
        else:
            assert "usage" not in frame
        _choice(frame["choices"][0], choices)
    if error is None:
        assert choices
        assert all(choice.finish_reason for choice in choices.values())
    if told is not None:
        assert told["id"] == frames[0]["id"]
    return choices, error


def _choice(said: dict[str, Any], choices: dict[int, Choice]) -> None:
    assert {"index", "delta", "finish_reason"} <= set(said)
    delta = said["delta"]
    assert isinstance(delta, dict)
    fresh = said["index"] not in choices
    assert fresh == (delta.get("role") == "assistant"), "a role comes first, and once"
    choice = choices.setdefault(said["index"], Choice())
    assert choice.finish_reason is None, "something comes after the finish reason"
    choice.text += delta.get("content") or ""
    choice.finish_reason = said["finish_reason"]
