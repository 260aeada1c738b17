"""Is a continued reply the reply? Cut at each sentence end, continued, compared.

Everything here is independent of how a server is asked: a `Write` asks it. At temperature 0 a reply
that was continued from its own beginning must end as it did in one go; where it does not, the new
text itself mostly says why.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from stream_aligner_proxy.core.errors import UpstreamError
from stream_aligner_proxy.core.ports import Upstream
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.core.sentences import split
from training.world.problems import problems
from training.world.tone import requests

MAX_TOKENS = 256
# So much of the reply's own beginning, written once more, is no coincidence.
_RESTART_CHARS = 12


@dataclass(frozen=True, slots=True)
class Written:
    """What a server wrote, and its finish reason."""

    text: str
    finish_reason: str | None


# (question, prefix) -> the new text. Raises `UpstreamError` where the server refuses.
Write = Callable[[str, str], Awaitable[Written]]
Tokens = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Cut:
    """One continuation. `got` is None where it was refused."""

    prefix: str
    expected: str
    got: str | None

    @property
    def equal(self) -> bool:
        return self.got == self.expected

    def why(self, tokens: Tokens | None = None) -> str:
        """In a few words what is wrong with it; "" if nothing is."""
        if self.equal:
            return ""
        if self.got is None:
            return "refused"
        whole = self.prefix + self.expected
        if self.got.lstrip().startswith(whole[:_RESTART_CHARS]):
            return "begins the reply again"
        if self.got.strip() == self.expected.strip():
            return "white space at the seam"
        if tokens is not None and splits_a_token(self.prefix, whole, tokens):
            return "the seam is inside a token"
        return "other words"


def splits_a_token(prefix: str, whole: str, tokens: Tokens) -> bool:
    """Whether the prefix alone reads as other tokens than as the beginning of the whole."""
    first = list(tokens(prefix))
    return list(tokens(whole))[: len(first)] != first


def questions(count: int, seed: int = 11) -> list[str]:
    """Held-out questions of the demo's world: half problems, half notes to be written."""
    notes = count // 2
    return [
        *(problem.question for problem in problems(seed, count - notes, "test")),
        *(request.question for request in requests(seed, notes, "test")),
    ]


def cuts_of(whole: str) -> list[str]:
    """The prefixes of a reply up to each sentence end, the last one included, without the white
    space after it: as the loop sends them."""
    found, read = [], ""
    for sentence in split(whole):
        read += sentence.text
        found.append(read.rstrip())
    return found


async def measure(write: Write, asked: Iterable[str]) -> list[Cut]:
    """Continue every reply from every cut. Raises `ValueError` for a reply that the limit ended:
    nothing could be compared with it."""
    done = []
    for question in asked:
        reply = await _twice(write, question, "")
        if reply.finish_reason != "stop":
            raise ValueError(f"the reply to {question!r} ended by {reply.finish_reason!r}")
        for prefix in cuts_of(reply.text):
            try:
                got: str | None = (await _twice(write, question, prefix)).text
            except UpstreamError:
                got = None
            done.append(Cut(prefix, reply.text[len(prefix) :], got))
    return done


async def _twice(write: Write, question: str, prefix: str) -> Written:
    """llama.cpp's server promises to keep a connection and closes it after a streamed reply: a
    request that takes it up at once is lost, and says that a second try may help."""
    try:
        return await write(question, prefix)
    except UpstreamError as error:
        if not error.transient:
            raise
    return await write(question, prefix)


def misses(cuts: Iterable[Cut], tokens: Tokens | None = None) -> str:
    """Why the unequal ones are unequal, with counts, the most frequent first."""
    reasons = Counter(cut.why(tokens) for cut in cuts if not cut.equal)
    return ", ".join(f"{number} × {reason}" for reason, number in reasons.most_common())


def through(upstream: Upstream, model: str) -> Write:
    """A branch of `upstream`, as a session opens it."""

    async def write(question: str, prefix: str) -> Written:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        text, reason = "", None
        async with upstream.open(ChatRequest(model, body, ()), prefix=prefix) as chunks:
            async for chunk in chunks:
                text += chunk.text
                reason = chunk.finish_reason or reason
        return Written(text, reason)

    return write
