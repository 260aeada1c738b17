"""The beginning of an answer, read before any of it is handed out.

From then on reading costs nothing more: an iterator is passed through, not wrapped in another.
"""

import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import orjson

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.forwarding import is_json
from stream_aligner_proxy.upstream.routing.member import Forwarded, Relayed

_Item = TypeVar("_Item")
# Inside a JSON string the quotes are escaped, so no reply's text can look like this.
_MAX_RENAMED_BYTES = 64 * 1024 * 1024
_MODEL = re.compile(rb'("model"\s*:\s*)"(?:[^"\\]|\\.)*"')


class _Begun(Generic[_Item]):
    """`head`, then what `rest` still has."""

    def __init__(self, head: deque[_Item], rest: AsyncIterator[_Item]) -> None:
        self._head = head
        self._next = rest.__anext__

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[_Item]:
        return self._take() if self._head else self._next()

    async def _take(self) -> _Item:
        return self._head.popleft()


async def begin_chunks(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """Read as far as the first text, part or end. Raises `UpstreamError`."""
    head: deque[Chunk] = deque()
    async for chunk in chunks:
        head.append(chunk)
        if chunk.text or chunk.part is not None or chunk.finish_reason:
            break
    return _Begun(head, chunks)


@dataclass(frozen=True, slots=True)
class Answer:
    """A relayed answer whose beginning has come: `body` where it is JSON, else `frames`."""

    headers: Mapping[str, str]
    body: bytes | None
    frames: AsyncIterator[bytes]


async def begin_frames(relayed: Relayed, model: str | None) -> Answer:
    """Read as far as the first frame. `model` replaces the name that the upstream gives its model;
    None leaves it. Raises `UpstreamError`."""
    if relayed.body is not None:
        body = relayed.body if model is None else _renamed_body(relayed.body, model)
        return Answer(relayed.headers, body, relayed.frames)
    head: deque[bytes] = deque()
    async for frames in relayed.frames:
        head.append(frames)
        break
    begun: AsyncIterator[bytes] = _Begun(head, relayed.frames)
    return Answer(relayed.headers, None, begun if model is None else _renamed(begun, model))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A forwarded answer whose beginning has come."""

    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


async def begin_pieces(forwarded: Forwarded, model: str | None) -> Pieces:
    """Read as far as the first piece; all of a JSON answer that gets another `model` (see
    `begin_frames`). Raises `UpstreamError`."""
    head: deque[bytes] = deque()
    renames = model is not None and is_json(forwarded.headers.get("content-type", ""))
    size = 0
    async for piece in forwarded.pieces:
        head.append(piece)
        if not renames:
            break
        size += len(piece)
        if size > _MAX_RENAMED_BYTES:
            raise UpstreamGarbled(
                f"the upstream answered with more than {_MAX_RENAMED_BYTES} bytes"
            )
    if renames and model is not None:
        head = deque((_renamed_body(b"".join(head), model),))
    return Pieces(forwarded.headers, _Begun(head, forwarded.pieces))


def _renamed_body(body: bytes, model: str) -> bytes:
    value = parse_object(body)
    return orjson.dumps({**value, "model": model}) if "model" in value else body


async def _renamed(frames: AsyncIterator[bytes], model: str) -> AsyncIterator[bytes]:
    name = orjson.dumps(model)
    async for some in frames:
        yield _MODEL.sub(lambda found: found[1] + name, some)
