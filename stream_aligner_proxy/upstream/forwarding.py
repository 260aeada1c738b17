"""Requests that are none of the proxy's business: passed through as they are, both ways.

What goes where is decided before; here the body is bytes of some type, and so is the answer.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from stream_aligner_proxy.upstream.endpoint import Endpoint
from stream_aligner_proxy.upstream.exchange import Exchange

# The headers of an upstream's answer that go to the client.
RETURNED = ("content-type", "x-request-id", "openai-processing-ms", "openai-version")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An answer: its headers as far as they go on, and its body as it comes."""

    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class _Pieces:
    """A body, a read at a time. It may be dropped at any point."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self._exchange.read()
        if data is None:
            raise StopAsyncIteration
        return data


@asynccontextmanager
async def forward(
    endpoint: Endpoint,
    path: str,
    content: bytes,
    *,
    content_type: str,
    headers: Mapping[str, str],
    request_id: str,
) -> AsyncIterator[Forwarded]:
    """POST `content` to `path` below the base. `headers`: the client's; see `Endpoint.headers`.

    Raises `UpstreamError`, by entering for all but a 200.
    """
    sent, refusals = endpoint.headers(headers, request_id, stream=False)
    sent |= {"accept": "*/*", "content-type": content_type}
    async with endpoint.post(content, sent, endpoint.below(path)) as exchange:
        response = await endpoint.answer(exchange, refusals)
        told = {name: response.headers[name] for name in RETURNED if name in response.headers}
        yield Forwarded(told, _Pieces(exchange))


def is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"
