"""A share of a route's conversations goes to a new aligner.

The conversation's beginning decides, so that all its turns, and all sentences of a reply, are
judged by the same one; a greater share takes more conversations and gives none back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from stream_aligner_proxy.aligners.beside import Counted
from stream_aligner_proxy.core.comparing import ComparisonWatcher, Pair, Skipped
from stream_aligner_proxy.core.errors import AlignerUnavailable
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import ChatRequest, Scope
from stream_aligner_proxy.upstream.routing.choosing import conversation_key

Refusal = Callable[[], AlignerUnavailable | None]


def never() -> AlignerUnavailable | None:
    """The `Refusal` of an aligner without a breaker."""
    return None


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who reviews a reply. `name` is the configured one; `refusal` says why it is not asked now."""

    name: str
    aligner: Aligner
    refusal: Refusal = never


def place(key: bytes, name: str) -> float:
    """Where a conversation stands, from 0 up to 1, in the order in which `name` takes them."""
    number = blake2b(name.encode(), key=key, digest_size=8, person=b"canary").digest()
    return (int.from_bytes(number, "big") >> 11) / 2**53  # all that a float holds: never 1


class Canary:
    """Chooses between the two; `share` is the candidate's."""

    def __init__(
        self, current: Reviewer, candidate: Reviewer, share: float, watcher: ComparisonWatcher
    ) -> None:
        self._pair = Pair(current.name, candidate.name)
        self._current = Reviewer(
            current.name,
            Counted(current.aligner, self._pair, "current", watcher),
            current.refusal,
        )
        self._candidate = Reviewer(
            candidate.name,
            Counted(candidate.aligner, self._pair, "candidate", watcher),
            candidate.refusal,
        )
        self._share = share
        self._watcher = watcher

    def choose(self, request: ChatRequest, scope: Scope, strength: float) -> Reviewer:
        """The candidate where the conversation is its own and it can do what is asked."""
        if place(conversation_key(request), self._candidate.name) >= self._share:
            return self._current
        if reason := self._hindered(scope, strength):
            self._watcher.skipped(self._pair, reason)
            return self._current
        return self._candidate

    def _hindered(self, scope: Scope, strength: float) -> Skipped | None:
        aligner = self._candidate.aligner
        least, most = aligner.strengths
        if scope not in aligner.scopes or not least <= strength <= most:
            return "unable"
        if not aligner.ready or self._candidate.refusal() is not None:
            return "unavailable"
        return None
