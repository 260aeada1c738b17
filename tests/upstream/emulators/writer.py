"""What both emulators share: a deterministic model, and a count of the requests it is busy with."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

REPLY = "Anna has 3 apples. She eats one of them.\n\nSo 2 are left. Good night!"
_WORD = re.compile(r"\s*\S+\s*?")
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)|.+?$", re.DOTALL)

Fault = Literal["overloaded", "overloaded within", "hangs"]


def count(text: str) -> int:
    """Tokens are words, each with the white space before it."""
    return len(_WORD.findall(text))


@dataclass(frozen=True)
class Written:
    """What the model writes: `words`, and why it stops."""

    words: list[str]
    end: Literal["end", "stop", "limit"]
    stop: str | None = None


@dataclass
class Writer:
    """A model at temperature 0: the reply follows from the last user message.

    `replies` are by a piece of that message. A prefix that is no beginning of the reply is taken
    for a corrected one: as many sentences of the reply as the prefix has are skipped.
    """

    replies: Mapping[str, str] = field(default_factory=dict)
    fault: Fault | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    changed: anyio.Event = field(default_factory=anyio.Event)

    def write(self, question: str, prefix: str, limit: int | None, stops: list[str]) -> Written:
        reply = next((text for piece, text in self.replies.items() if piece in question), REPLY)
        if reply.startswith(prefix):
            rest = reply[len(prefix) :]
        else:
            sentences = _SENTENCE.findall(reply)
            rest = "".join(sentences[len(_SENTENCE.findall(prefix)) :])
        found = [(at, stop) for stop in stops if (at := rest.find(stop)) >= 0]
        if found:
            rest = rest[: min(found)[0]]
        words = _WORD.findall(rest)
        if limit is not None and len(words) > limit:
            return Written(words[:limit], "limit")
        return Written(words, "stop", min(found)[1]) if found else Written(words, "end")

    async def stream(self, events: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        self._count(1)
        try:
            async for event in events():
                yield event
        finally:
            self._count(-1)

    async def until_idle(self, seconds: float = 5) -> None:
        """Wait until no request is running."""
        with anyio.fail_after(seconds):
            while self.running:
                await self.changed.wait()

    def _count(self, change: int) -> None:
        self.running += change
        self.changed.set()
        self.changed = anyio.Event()
