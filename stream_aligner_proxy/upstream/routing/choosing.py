"""Which target a conversation belongs to. Pure.

Rendezvous hashing: every target draws a number from the conversation's beginning and its own name,
and the greatest wins. So all turns of a conversation, and all continuations of a reply, go where
their prefix is cached already; and when a target goes, only its own conversations move.
"""

import math
from collections.abc import Callable, Iterable
from hashlib import blake2b

from stream_aligner_proxy.core.records import ChatRequest, Turn

_SYSTEM = ("system", "developer")


def conversation_key(request: ChatRequest) -> bytes:
    """What stays the same in all turns of a conversation: instructions, the first question, and
    whose conversation it is."""
    digest = blake2b(digest_size=16)
    user = request.body.get("user")
    _add(digest.update, "user", user if isinstance(user, str) else "")
    for turn in _beginning(request.conversation):
        _add(digest.update, turn.role, turn.text)
    return digest.digest()


def _beginning(conversation: Iterable[Turn]) -> Iterable[Turn]:
    for turn in conversation:
        if turn.role in _SYSTEM:
            yield turn
        elif turn.role == "user":
            yield turn
            return


def _add(update: Callable[[bytes], None], role: str, text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    update(f"{role} {len(raw)} ".encode("utf-8", "surrogatepass"))
    update(raw)


def session_id(key: bytes) -> str:
    """A name for the conversation that tells nothing about it."""
    return blake2b(key, digest_size=16, person=b"session").hexdigest()


def draw(key: bytes, target: str, weight: float) -> float:
    """What `target` draws for the conversation: it wins as often as its share of all weights."""
    number = int.from_bytes(blake2b(target.encode(), key=key, digest_size=8).digest(), "big")
    return -weight / math.log((number + 1) / (2**64 + 2))
