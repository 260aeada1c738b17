"""The upstream client: one OpenAI-compatible server behind the `Upstream` port.

A branch is one `POST /chat/completions`; leaving its context closes the connection, which is what
makes the server stop. Rule: no error, repr or log line holds a key or the server's address.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.errors import (
    ConfigError,
    ContinuationFailed,
    UpstreamError,
    UpstreamRejected,
)
from stream_aligner_proxy.core.records import ChatRequest, Chunk, Continuation, Found, Way
from stream_aligner_proxy.upstream.bodies import choices_of
from stream_aligner_proxy.upstream.branching import Branching, Sender, encode, local_template
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.counting import NO_SUCH_PATH, can_count, count_tokens
from stream_aligner_proxy.upstream.dialects import Dialect, find_dialect
from stream_aligner_proxy.upstream.endpoint import Endpoint
from stream_aligner_proxy.upstream.exchange import Timeouts
from stream_aligner_proxy.upstream.forwarding import RETURNED, Forwarded, forward, is_json
from stream_aligner_proxy.upstream.probing import NOT_UNDERSTOOD, partial_body, probe
from stream_aligner_proxy.upstream.streams import (
    MAX_BODY_BYTES,
    ChunkStream,
    FrameStream,
    WholeReply,
)
from stream_aligner_proxy.upstream.ways import SETTINGS, Setting, Ways


@dataclass(frozen=True, slots=True)
class Relayed:
    """A relayed answer: `body` where the upstream answered JSON, otherwise `frames`, each item one
    or more whole ones."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None
    frames: AsyncIterator[bytes]


class HttpUpstream:
    """Implements `core.ports.Upstream` over HTTP with one connection pool.

    `base_url` includes the API's path (`…/v1`). A configured `api_key` is used for every request;
    without one the client's own `authorization` goes on. `session_header`: a request's header of
    this name goes on, too. `tokenizer`: a folder with the model's tokenizer, to apply its chat
    template here and continue through `/completions`. `max_connections` is a last bound: how many
    replies there are is for the server's limits and `max_concurrent` to say, and a reply that is
    being continued may hold two. Used from one event loop.
    Raises `ConfigError` for an unknown dialect, an address or a key that cannot work.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        dialect: str = "generic",
        *,
        api_key: str | None = None,
        continuation: Setting = "auto",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        tokenizer: Path | None = None,
        timeouts: Timeouts | None = None,
        max_connections: int = 10_000,
        http2: bool = True,
        ca_file: Path | None = None,
        session_header: str | None = None,
    ) -> None:
        self._name = name
        self._dialect = find_dialect(dialect, f"upstreams.{name}.dialect")
        if continuation not in SETTINGS:
            raise ConfigError(
                f"upstreams.{name}.continuation: must be one of {', '.join(SETTINGS)}"
            )
        template = local_template(self._dialect, continuation, tokenizer, f"upstreams.{name}")
        self._ways = Ways(self._dialect, continuation, template=template is not None)
        self._wire = self._dialect.wire
        self._endpoint = Endpoint(
            name,
            base_url,
            self._dialect,
            api_key=api_key,
            query=query,
            headers=headers,
            timeouts=timeouts,
            max_connections=max_connections,
            http2=http2,
            ca_file=ca_file,
            session_header=session_header,
        )
        self._branching = Branching(self._endpoint, self._dialect, self._ways, template)

    def __repr__(self) -> str:
        return f"HttpUpstream({self._name!r}, dialect={self._dialect.name!r})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @property
    def relays(self) -> bool:
        """Whether it speaks the client's API."""
        return self._wire is None or self._wire.relays

    @property
    def ways(self) -> Ways:
        """What is known of how it continues."""
        return self._ways

    def continuation(self, request: ChatRequest) -> Continuation:
        """How a reply to this request would be continued; see `Ways`."""
        return self._ways.best(request.body)

    def completes(self, request: ChatRequest) -> bool:
        """Whether the prompt of a text completion is written on; else it is sent as a chat."""
        return self._ways.completes(request.body)

    async def probe(self, model: str, headers: Mapping[str, str] | None = None) -> Found:
        """Find out what it does with a partial message, and whether it gives ids; remember both.
        Raises `UpstreamError`."""
        found = await probe(self, model, headers)
        self._ways.classify(model, found)
        if "ids" in self._dialect.ways:
            try:
                sender = Sender(*self._endpoint.headers(headers or {}, "", stream=False))
                await self._branching.tokenized(sender, partial_body(model))
            except UpstreamRejected as error:
                if error.status not in NOT_UNDERSTOOD:
                    raise
                self._ways.refute(model, "ids")
            else:
                self._ways.saw(model, "ids")
        return found

    @asynccontextmanager
    async def open(
        self, request: ChatRequest, *, prefix: str = "", max_tokens: int | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Run one branch; see the port. `prefix` comes without trailing whitespace, and the new
        text keeps its leading whitespace: only so does the seam tokenise as one text would."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, request, prefix, max_tokens)

    def prefilled(
        self, request: ChatRequest, prefix: str, max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """One branch with a partial message, as the upstream answers it: for the probe."""
        return self._run(request, prefix, max_tokens, "prefill", watched=False)

    async def _enter(
        self, stack: AsyncExitStack, request: ChatRequest, prefix: str, max_tokens: int | None
    ) -> AsyncIterator[Chunk]:
        """Run one branch by the best way that the upstream accepts."""
        if not prefix:
            return await self._begin(stack, request, max_tokens)
        refused: list[Way] = []
        last: UpstreamError | None = None
        for way in self._ways.order(request.body):
            branch = self._run(request, prefix, max_tokens, way)
            try:
                chunks = await stack.enter_async_context(branch)
            except UpstreamRejected as error:
                # The same request was answered before there was a prefix.
                if error.status not in NOT_UNDERSTOOD:
                    raise
                refused.append(way)
                last = error
            except ContinuationFailed as error:
                # This conversation only: it was not sent.
                last = error
            else:
                for other in refused:
                    self._ways.refute(request.model, other, "rejects")
                return chunks
        failed = ContinuationFailed(f"upstream {self._name!r} would not continue the text")
        failed.upstream = self._name
        raise failed from last

    async def _begin(
        self, stack: AsyncExitStack, request: ChatRequest, max_tokens: int | None
    ) -> AsyncIterator[Chunk]:
        """Run the first branch. A prompt becomes a chat where the upstream writes on none, which
        may only show now."""
        chat = self._run(request, "", max_tokens, "prefill")
        if not self._ways.completes(request.body):
            return await stack.enter_async_context(chat)
        try:
            branch = self._run(request, "", max_tokens, "prompt")
            chunks = await stack.enter_async_context(branch)
        except UpstreamRejected as error:
            if error.status not in NO_SUCH_PATH:
                raise
            # It may be the model that does not exist: then the chat is refused, too.
            chunks = await stack.enter_async_context(chat)
            self._ways.refute(request.model, "prompt")
        else:
            self._ways.saw(request.model, "prompt")
        return chunks

    @asynccontextmanager
    async def _run(
        self,
        request: ChatRequest,
        prefix: str,
        max_tokens: int | None,
        way: Way,
        *,
        watched: bool = True,
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """One branch, continuing `prefix`, where there is one, by `way`."""
        sender = Sender(*self._endpoint.headers(request.headers, request.request_id, stream=True))
        asked = await self._branching.ask(
            sender, request, way, prefix=prefix, max_tokens=max_tokens, watched=watched
        )
        url = asked.url
        async with self._endpoint.post(encode(asked.body), sender.headers, url) as exchange:
            response = await self._endpoint.answer(exchange, sender.refusals)
            kind = WholeReply if is_json(response.headers.get("content-type", "")) else ChunkStream
            chunks = kind(exchange, asked.reader)
            yield chunks
            if chunks.over:
                await exchange.drain()

    @asynccontextmanager
    async def relay(
        self,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        stream: bool,
        request_id: str = "",
        path: str = "chat/completions",
    ) -> AsyncIterator[Relayed]:
        """Pass a request to a `path` below the base, and its answer, through unread, errors mapped
        as for a branch. The answer is a reply's, of a chat or of a text completion.

        A streamed answer comes as complete SSE frames, so a reset can never leave half of one.
        """
        sent, refusals = self._endpoint.headers(headers, request_id, stream=stream)
        async with self._endpoint.post(
            body if isinstance(body, bytes) else encode(body), sent, self._endpoint.below(path)
        ) as exchange:
            response = await self._endpoint.answer(exchange, refusals)
            told = {name: response.headers[name] for name in RETURNED if name in response.headers}
            choices = choices_of(body) if isinstance(body, Mapping) else 1
            frames = FrameStream(exchange, refusals, choices)
            whole: bytes | None = None
            if is_json(response.headers.get("content-type", "")):
                whole = await exchange.read_all(MAX_BODY_BYTES)
                frames.over = True
                parsed = parse_object(whole)
                if parsed.get("error"):
                    raise refusals.from_frame(parsed)
            yield Relayed(response.status, told, whole, frames)
            if frames.over:
                await exchange.drain()

    def forward(
        self,
        path: str,
        content: bytes,
        content_type: str,
        headers: Mapping[str, str],
        *,
        request_id: str = "",
    ) -> AbstractAsyncContextManager[Forwarded]:
        """See `forwarding.forward`."""
        return forward(
            self._endpoint,
            path,
            content,
            content_type=content_type,
            headers=headers,
            request_id=request_id,
        )

    @property
    def counts(self) -> bool:
        """Whether it can tell how many tokens a conversation has."""
        return can_count(self._dialect)

    async def count_tokens(self, request: ChatRequest) -> int:
        """See `counting.count_tokens`."""
        return await count_tokens(self._endpoint, self._dialect, request)

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        """The upstream's `/models` data; `headers` may bring the client's own key."""
        return await self._endpoint.models(headers)

    async def ping(self) -> None:
        """Raise `UpstreamError` unless it is up; see `Endpoint.ping`."""
        await self._endpoint.ping()

    async def aclose(self) -> None:
        """Close the connection pool."""
        await self._endpoint.close()
