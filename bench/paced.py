"""An upstream and an aligner that keep given speeds, and the replies they speak about.

The upstream takes `restart` seconds before it begins to write, then 1 / `tokens_per_s` for each
token and for the end, whether it is read or not: between it and a reader that pauses there are
socket buffers. What it wrote until it was closed is counted. It continues any prefix at the
sentence after the last one in it. The aligner takes `seconds` for a review, rewrites the sentences
that are wrong, and can tell its revision as it goes.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import (
    NEUTRAL,
    ChatRequest,
    Chunk,
    Continuation,
    Review,
    Scope,
    Turn,
    Usage,
    Verdict,
)

_WORDS = (
    *("the", "of", "water", "light", "and", "small", "into", "house", "when", "river", "green"),
    *("often", "takes", "about", "long"),
)
_WRONG, _RIGHT = "never", "always"
MEAN_TOKENS = 20
_LEAST_TOKENS, _MOST_TOKENS = 4, 60
PROMPT_TOKENS = 30
REQUEST = ChatRequest("m", {}, (Turn("user", "What is it?"),))


@dataclass(frozen=True)
class Text:
    """A reply: its sentences as tokens. Those that are wrong hold the word that gives them away."""

    sentences: tuple[tuple[str, ...], ...]
    corrected: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sentences))

    def after(self, prefix: str) -> list[str]:
        """The tokens that continue `prefix`."""
        return [token for sentence in self.sentences[prefix.count(".") :] for token in sentence]

    @property
    def ends_corrected(self) -> bool:
        return any(_WRONG in token for token in self.sentences[-1])

    @property
    def final(self) -> str:
        """What the aligner makes of it."""
        return corrected("".join(token for sentence in self.sentences for token in sentence))


def text_of(sentences: int, share: float, seed: int) -> Text:
    """`share` of the sentences are wrong. Lengths are log-normal, 20 tokens in the mean; a shorter
    reply is the beginning of a longer one."""
    dice = random.Random(seed)
    spread = 0.5
    wrong = set(
        random.Random(seed * 1009 + sentences).sample(range(sentences), round(share * sentences))
    )
    written = []
    for index in range(sentences):
        mean = dice.lognormvariate(0, spread) * MEAN_TOKENS / 1.133  # e ** (spread ** 2 / 2)
        length = min(max(round(mean), _LEAST_TOKENS), _MOST_TOKENS)
        words = [dice.choice(_WORDS) for _ in range(length - 1)]
        words[0] = words[0].capitalize()
        words[1] = _WRONG if index in wrong else "still"
        first = words[0] if index == 0 else f" {words[0]}"
        written.append((first, *(f" {word}" for word in words[1:]), "."))
    return Text(tuple(written), len(wrong))


def corrected(sentence: str) -> str:
    return sentence.replace(_WRONG, _RIGHT)


class PacedUpstream:
    """`written` counts the tokens of all runs."""

    name = "paced"

    def __init__(self, text: Text, tokens_per_s: float, restart: float) -> None:
        self._text = text
        self._interval = 1 / tokens_per_s
        self._restart = restart
        self.written = 0
        self.runs = 0

    def continuation(self, request: ChatRequest) -> Continuation:
        return Continuation("prefill")

    async def models(self) -> list[dict[str, object]]:
        return [{"id": "m"}]

    @asynccontextmanager
    async def open(
        self, request: ChatRequest, *, prefix: str = "", max_tokens: int | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        clock = asyncio.get_running_loop().time
        tokens = self._text.after(prefix)
        first = clock() + self._restart + self._interval
        self.runs += 1
        try:
            yield self._chunks(tokens, first, len(prefix.split()))
        finally:
            due = int((clock() - first) / self._interval + 1 + 1e-6) if clock() >= first else 0
            self.written += min(due, len(tokens))

    async def _chunks(
        self, tokens: Sequence[str], first: float, prefix: int
    ) -> AsyncIterator[Chunk]:
        for number, token in enumerate(tokens):
            await sleep_until(first + number * self._interval)
            yield Chunk(text=token)
        # The end is a token too.
        await sleep_until(first + len(tokens) * self._interval)
        yield Chunk(finish_reason="stop", usage=Usage(PROMPT_TOKENS + prefix, len(tokens)))


class PacedAligner:
    """With `tells`, a revision is told word by word, evenly over the review's time."""

    name = "paced"
    scopes: frozenset[Scope] = frozenset(("sentence", "whole"))
    strengths = (NEUTRAL, NEUTRAL)
    ready = True

    def __init__(self, seconds: float, *, tells: bool = False) -> None:
        self._seconds = seconds
        self._tells = tells

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def expect(self, review: Review) -> None: ...

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        begun = asyncio.get_running_loop().time()
        new = corrected(review.sentence)
        if self._tells and progress is not None:
            words = new.split(" ")
            for count in range(1, len(words)):
                await sleep_until(begun + self._seconds * count / len(words))
                progress(" ".join(words[:count]))
        await sleep_until(begun + self._seconds)
        return Verdict() if new == review.sentence else Verdict(new)


async def sleep_until(when: float) -> None:
    loop = asyncio.get_running_loop()
    if when > loop.time():
        await asyncio.sleep(when - loop.time())
