"""The upstream client: one OpenAI-compatible server behind the `Upstream` port.

A branch is one `POST /chat/completions`; leaving its context closes the connection, which is what
makes the server stop. Rule: no error, repr or log line holds a key or the server's address.
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from yarl import URL

from stream_aligner_proxy.core.errors import (
    ConfigError,
    ContinuationFailed,
    RequestError,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
)
from stream_aligner_proxy.core.records import ChatRequest, Chunk, Continuation, Way
from stream_aligner_proxy.upstream.bodies import branch_body, told_to_go_on
from stream_aligner_proxy.upstream.chunks import ChunkReader, parse_object
from stream_aligner_proxy.upstream.continuing import ContinuedReader
from stream_aligner_proxy.upstream.dialects import Dialect, find_dialect
from stream_aligner_proxy.upstream.exchange import Answer, Connections, Exchange, Timeouts
from stream_aligner_proxy.upstream.probing import probe
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.streams import (
    MAX_BODY_BYTES,
    ChunkStream,
    FrameStream,
    WholeReply,
)
from stream_aligner_proxy.upstream.tokenizing import (
    CompletionReader,
    completion_body,
    ids_of,
    tokenize_body,
)
from stream_aligner_proxy.upstream.ways import SETTINGS, Class, Setting, Ways
from stream_aligner_proxy.upstream.wires import Reader

_MAX_ERROR_BYTES = 64 * 1024
# Refusals that are about what was asked, not about the moment or the key.
_NOT_UNDERSTOOD = frozenset((400, 404, 405, 415, 422, 501))
_FORWARDED = frozenset(("traceparent", "tracestate", "x-request-id"))
# Belong to the client's account: they go with its key, never with the proxy's.
_FORWARDED_WITH_KEY = frozenset(("authorization", "openai-organization", "openai-project"))
_RETURNED = ("content-type", "x-request-id", "openai-processing-ms", "openai-version")
_MIN_SECRET_CHARS = 8
# A name of labels (underscores occur in container networks), or an IPv6 address.
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%[\w.-]+)?")


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
    this name goes on, too. Used from one event loop.
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
        timeouts: Timeouts | None = None,
        max_connections: int = 1000,
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
        self._ways = Ways(self._dialect, continuation)
        self._own_headers = {key.lower(): value for key, value in (headers or {}).items()}
        base, self._basic = _checked_address(base_url, f"upstreams.{name}.base_url")
        base = base.update_query(query or {})
        self._base = base
        self._wire = self._dialect.wire
        self._chat_url = (base / "chat/completions").with_query(base.query)
        self._models_url = self._below(self._wire.models_path if self._wire else "models")
        if api_key is not None and not _sendable(api_key):
            raise ConfigError(f"upstreams.{name}.api_key: not a key that a header can carry")
        self._api_key = api_key
        self._timeouts = timeouts or Timeouts()
        self._forwarded = _FORWARDED if api_key else _FORWARDED | _FORWARDED_WITH_KEY
        if session_header is not None:
            self._forwarded |= {session_header}
        try:
            self._connections = Connections(max_connections, http2=http2, ca_file=ca_file)
        except OSError as error:
            raise ConfigError(
                f"upstreams.{name}.ca_file: holds no certificates that can be read"
            ) from error

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

    async def probe(self, model: str, headers: Mapping[str, str] | None = None) -> Class:
        """Find out what it does with a partial message, and remember it. Raises `UpstreamError`."""
        found = await probe(self, model, headers)
        self._ways.classify(model, found)
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
            return await stack.enter_async_context(self._run(request, "", max_tokens, "prefill"))
        refused: list[tuple[Way, UpstreamRejected]] = []
        for way in self._ways.order(request.body):
            branch = self._run(request, prefix, max_tokens, way)
            try:
                chunks = await stack.enter_async_context(branch)
            except UpstreamRejected as error:
                # The same request was answered before there was a prefix.
                if error.status not in _NOT_UNDERSTOOD:
                    raise
                refused.append((way, error))
            else:
                for other, _ in refused:
                    self._ways.refute(request.model, other)
                return chunks
        failed = ContinuationFailed(f"upstream {self._name!r} would not continue the text")
        failed.upstream = self._name
        raise failed from (refused[-1][1] if refused else None)

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
        headers, refusals = self._headers(request.headers, request.request_id, stream=True)
        body, given = request.body, prefix
        if prefix and way == "instruct":
            body, given = told_to_go_on(body, prefix), ""
        reader: Reader
        if (wire := self._wire) is not None:
            url = self._below(wire.path(body))
            body = wire.branch(body, self._dialect, prefix=given, max_tokens=max_tokens)
            reader = wire.reader(refusals)
        else:
            url = self._chat_url
            body = branch_body(body, self._dialect, prefix=given, max_tokens=max_tokens)
            repeated = given if watched and self._ways.repeats(request.model) else ""
            reader = ChunkReader(refusals, repeated)
        if prefix and way == "ids":
            url = self._below("completions")
            body = completion_body(body, *await self._tokenized(body, headers, refusals))
            reader = CompletionReader(ChunkReader(refusals))
        if prefix and watched:
            model = request.model
            reader = ContinuedReader(
                reader,
                prefix,
                lambda well: (self._ways.saw if well else self._ways.refute)(model, way),
                seam=not self._ways.sure(model, way),
            )
        async with self._named(self._post(_encode(body), headers, url)) as exchange:
            response = await self._answer(exchange, refusals)
            kind = WholeReply if _is_json(response) else ChunkStream
            chunks = kind(exchange, reader)
            yield chunks
            if chunks.over:
                await exchange.drain()

    async def _tokenized(
        self, body: Mapping[str, Any], headers: dict[str, str], refusals: Refusals
    ) -> tuple[list[int], int | None]:
        """The ids of a body's conversation, and the room left behind them."""
        root = self._base.parent if self._base.name == "v1" else self._base
        sent = {**headers, "accept": "application/json"}
        url = root / "tokenize"
        async with self._named(self._post(_encode(tokenize_body(body)), sent, url)) as exchange:
            await self._answer(exchange, refusals)
            return ids_of(await exchange.read_all(MAX_BODY_BYTES))

    @asynccontextmanager
    async def relay(
        self,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        stream: bool,
        request_id: str = "",
    ) -> AsyncIterator[Relayed]:
        """Pass a chat request and its answer through unread, errors mapped as for a branch.

        A streamed answer comes as complete SSE frames, so a reset can never leave half of one.
        """
        sent, refusals = self._headers(headers, request_id, stream=stream)
        content = body if isinstance(body, bytes) else _encode(body)
        async with self._named(self._post(content, sent, self._chat_url)) as exchange:
            response = await self._answer(exchange, refusals)
            told = {name: response.headers[name] for name in _RETURNED if name in response.headers}
            choices = body.get("n") if isinstance(body, Mapping) else None
            frames = FrameStream(exchange, refusals, choices or 1)
            whole: bytes | None = None
            if _is_json(response):
                whole = await exchange.read_all(MAX_BODY_BYTES)
                frames.over = True
                parsed = parse_object(whole)
                if parsed.get("error"):
                    raise refusals.from_frame(parsed)
            yield Relayed(response.status, told, whole, frames)
            if frames.over:
                await exchange.drain()

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        """The upstream's `/models` data; `headers` may bring the client's own key."""
        exchange, refusals = self._get_models(headers or {}, self._timeouts)
        try:
            await self._answer(exchange, refusals)
            body = await exchange.read_all(MAX_BODY_BYTES)
        finally:
            exchange.close()
        answer = parse_object(body)
        data = self._wire.models(answer) if self._wire else answer.get("data")
        if not isinstance(data, list) or not all(isinstance(model, dict) for model in data):
            raise UpstreamGarbled(f"upstream {self._name!r} sent a malformed list of models")
        return data

    async def ping(self) -> None:
        """Raise `UpstreamError` unless the server answers `/models` soon, and takes our key.

        Without a key of our own a 401 will do, and so will a server that has no `/models`.
        """
        seconds = self._timeouts.ping
        short = Timeouts(seconds, seconds, seconds, seconds)
        exchange, refusals = self._get_models({}, short)
        try:
            await self._answer(exchange, refusals)
        except UpstreamTimeout:
            raise
        except UpstreamError:
            status = exchange.status
            tolerated = (404, 405) if self._api_key else (401, 403, 404, 405)
            if status not in tolerated:
                raise
        finally:
            exchange.close()

    @asynccontextmanager
    async def _named(self, exchange: Exchange) -> AsyncIterator[Exchange]:
        """Closes the exchange, and notes on its errors whose they are."""
        try:
            yield exchange
        except UpstreamError as error:
            error.upstream = self._name
            raise
        finally:
            exchange.close()

    async def aclose(self) -> None:
        """Close the connection pool."""
        await self._connections.close()

    def _below(self, path: str) -> URL:
        """An address below the base. `path` is encoded already, and may have a query."""
        base = str(self._base.with_query(None)).rstrip("/")
        return URL(f"{base}/{path}", encoded=True).update_query(self._base.query)

    def _post(self, content: bytes, headers: dict[str, str], url: URL) -> Exchange:
        return Exchange(
            self._connections,
            "POST",
            url,
            headers=headers,
            timeouts=self._timeouts,
            upstream=self._name,
            content=content,
        )

    def _get_models(
        self, headers: Mapping[str, str], timeouts: Timeouts
    ) -> tuple[Exchange, Refusals]:
        sent, refusals = self._headers(headers, "", stream=False)
        exchange = Exchange(
            self._connections,
            "GET",
            self._models_url,
            headers=sent,
            timeouts=timeouts,
            upstream=self._name,
        )
        return exchange, refusals

    async def _answer(self, exchange: Exchange, refusals: Refusals) -> Answer:
        """The answer, if it is a 200. Raises `UpstreamError`."""
        response = await exchange.send()
        if response.status == 200:
            return response
        body = await exchange.read_start(_MAX_ERROR_BYTES)
        raise refusals.from_status(response.status, response.headers, body)

    def _headers(
        self, theirs: Mapping[str, str], request_id: str, *, stream: bool
    ) -> tuple[dict[str, str], Refusals]:
        """What is sent, by the allow-list, and how refusals of it are told."""
        sent = {
            name.lower(): value
            for name, value in theirs.items()
            if name.lower() in self._forwarded and _sendable(value)
        }
        if request_id and _sendable(request_id):
            sent["x-request-id"] = request_id
        if self._api_key:
            sent["authorization"] = f"Bearer {self._api_key}"
        if self._basic:
            sent["authorization"] = self._basic
        secret = sent.get("authorization", "").removeprefix("Bearer ")
        if self._dialect.key_header != "authorization" and secret and not self._basic:
            del sent["authorization"]
            sent[self._dialect.key_header] = secret
        if self._wire is not None:
            sent |= self._wire.headers
        sent |= self._own_headers
        secrets = tuple(
            value
            for value in (secret, *self._own_headers.values())
            if len(value) >= _MIN_SECRET_CHARS
        )
        sent["accept"] = "text/event-stream" if stream else "application/json"
        sent["content-type"] = "application/json"
        return sent, Refusals(self._name, self._api_key is not None, secrets)


def _checked_address(base_url: str, key: str) -> tuple[URL, str]:
    """The address without credentials, and what these become in a header."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{key}: not an address") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{key}: must begin with http:// or https:// and name a host")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{key}: the host is not a name or an address")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"{key}: the port must be from 1 to 65535")
    base = base_url.rstrip("/")
    if base.endswith(("/chat/completions", "/completions", "/models")):
        raise ConfigError(f"{key}: ends too late; give the API's base, such as http://HOST/v1")
    try:
        url = URL(base)
    except ValueError as error:
        raise ConfigError(f"{key}: not an address") from error
    basic = ""
    if url.user or url.password:
        named = f"{url.user or ''}:{url.password or ''}"
        basic = "Basic " + b64encode(named.encode()).decode()
    return url.with_user(None), basic


def _sendable(value: str) -> bool:
    """Whether a header can carry it: printable ASCII, not empty."""
    return bool(value.strip()) and value.isascii() and value.isprintable()


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise RequestError("the request holds what JSON cannot carry") from error


def _is_json(response: Answer) -> bool:
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"
