"""The proxy's own keys: who a client is, and what it may ask for.

At rest there are only hashes. A key is 256 random bits, so that nobody can guess what a hash was
made of, and one round of SHA-256 is right: slow hashes and salts are for what people make up. For
the same reason a key that somebody made up is refused when it is hashed (`hash_of`).
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stream_aligner_proxy.access.limits import Limits
from stream_aligner_proxy.core.errors import ModelNotFound, Unauthorized
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.upstream.routing.patterns import Pattern

PREFIX = "sk-sa-"
ALGORITHM = "sha256:"
_RANDOM_BYTES = 32
SHORTEST = 32  # characters


def new_key() -> str:
    """A key that no other has."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_of(key: str) -> str:
    """As it stands in the configuration. Raises `ValueError` for what is no random key."""
    if len(key) < SHORTEST or not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(
            f"a key has at least {SHORTEST} characters, drawn at random, that a header can carry"
        )
    return ALGORITHM + _digest(key).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Key:
    """What the holder of one key may do.

    `models`: which names it may ask for, None for all. `modes`: likewise; the first is what it gets
    where the route's own is not among them. `expires`: Unix seconds. Several may have one `name`:
    they are counted together, so that a key can be exchanged without a gap.
    """

    name: str
    digests: tuple[bytes, ...] = field(repr=False)
    models: tuple[Pattern, ...] | None = None
    modes: tuple[Mode, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    expires: float | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or any(
            pattern.match(model) is not None for pattern in self.models
        )

    def check_model(self, model: str) -> None:
        """Raises `ModelNotFound`: what a key may not use is not there for it."""
        if not self.may_use(model):
            raise ModelNotFound(
                f"The model '{model}' does not exist, or this API key may not use it.",
                param="model",
            )


class Keys:
    """A set of keys, compared with what a client shows."""

    def __init__(self, keys: Sequence[Key], clock: Callable[[], float] = time.time) -> None:
        self.all = tuple(keys)
        self._entries = [(digest, key) for key in self.all for digest in key.digests]
        self._clock = clock

    def identify(self, shown: str) -> Key:
        """Whose key this is. Raises `Unauthorized`.

        Each entry is compared in full, whatever matched before: how long it takes tells nothing.
        """
        digest = _digest(shown)
        found: Key | None = None
        for known, key in self._entries:
            if hmac.compare_digest(digest, known):
                found = key
        if found is None:
            raise Unauthorized("Incorrect API key provided.")
        if found.expires is not None and found.expires <= self._clock():
            raise Unauthorized("This API key has expired.", code="expired_api_key")
        return found
