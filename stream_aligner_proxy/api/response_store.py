"""Finished responses of this process, so that a conversation can go on from one by its id.

In memory and bounded: the oldest go first, a restart forgets all. An entry belongs to the key that
it was made with: to other clients it does not exist.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MOST = 10_000  # entries
_OVERHEAD = 1024  # bytes of an entry beside its text


@dataclass(frozen=True, slots=True)
class Kept:
    """A response and the items it answered, those of earlier responses included, as JSON."""

    owner: bytes
    response: bytes
    items: bytes

    @property
    def size(self) -> int:
        return len(self.response) + len(self.items) + _OVERHEAD

    def conversation(self) -> list[dict[str, Any]]:
        """All items that a next response has to know."""
        items: list[dict[str, Any]] = orjson.loads(self.items)
        return items + list(orjson.loads(self.response)["output"])


def owner_of(authorization: str | None, key: str | None = None) -> bytes:
    """Whose a response is: that of the proxy's key of this name, of the client's own, or of both.
    The client's own is not kept."""
    return hashlib.sha256(f"{key or ''} {authorization or ''}".encode()).digest()


class ResponseStore:
    """At most `max_bytes` and `most` entries; 0 bytes keep nothing."""

    def __init__(self, max_bytes: int, most: int = MOST) -> None:
        self._max_bytes = max_bytes
        self._most = most
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    @property
    def keeps(self) -> bool:
        return self._max_bytes > 0

    @property
    def size(self) -> int:
        """Bytes, as they are counted against the bound."""
        return self._size

    def put(
        self,
        owner: bytes,
        response: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep a response, if it is not larger than all there may be."""
        kept = Kept(owner, orjson.dumps(response), orjson.dumps(items))
        if kept.size > self._max_bytes:
            return
        self._forget(response["id"])
        self._kept[response["id"]] = kept
        self._size += kept.size
        while self._size > self._max_bytes or len(self._kept) > self._most:
            self._forget(next(iter(self._kept)))

    def get(self, owner: bytes, response_id: str) -> Kept | None:
        """The owner's response; what is asked for is kept longer."""
        kept = self._kept.get(response_id)
        if kept is None or kept.owner != owner:
            return None
        self._kept.move_to_end(response_id)
        return kept

    def delete(self, owner: bytes, response_id: str) -> bool:
        if self.get(owner, response_id) is None:
            return False
        self._forget(response_id)
        return True

    def _forget(self, response_id: str) -> None:
        kept = self._kept.pop(response_id, None)
        if kept is not None:
            self._size -= kept.size
