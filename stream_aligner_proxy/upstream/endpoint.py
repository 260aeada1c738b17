"""One server's address: what is sent to it, and with which key.

Rule: no error, repr or log line holds a key or the address.
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from yarl import URL

from stream_aligner_proxy.core.errors import (
    ConfigError,
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
)
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.dialects import Dialect
from stream_aligner_proxy.upstream.exchange import Answer, Connections, Exchange, Timeouts
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.streams import MAX_BODY_BYTES

_MAX_ERROR_BYTES = 64 * 1024
_FORWARDED = frozenset(("traceparent", "tracestate", "x-request-id"))
# Belong to the client's account: they go with its key, never with the proxy's.
_FORWARDED_WITH_KEY = frozenset(("authorization", "openai-organization", "openai-project"))
_MIN_SECRET_CHARS = 8
# A name of labels (underscores occur in container networks), or an IPv6 address.
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%[\w.-]+)?")


class Endpoint:
    """An API's base address with a connection pool. See `HttpUpstream` for the arguments.

    Raises `ConfigError` for an address or a key that cannot work.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        dialect: Dialect,
        *,
        api_key: str | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        timeouts: Timeouts | None,
        max_connections: int,
        http2: bool,
        ca_file: Path | None,
        session_header: str | None,
    ) -> None:
        self.name = name
        self._dialect = dialect
        self._own_headers = {key.lower(): value for key, value in (headers or {}).items()}
        base, self._basic = _checked_address(base_url, f"upstreams.{name}.base_url")
        self.base = base = base.update_query(query or {})
        if api_key is not None and not sendable(api_key):
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

    def below(self, path: str) -> URL:
        """An address below the base. `path` is encoded already, and may have a query."""
        base = str(self.base.with_query(None)).rstrip("/")
        return URL(f"{base}/{path}", encoded=True).update_query(self.base.query)

    @asynccontextmanager
    async def post(
        self, content: bytes, headers: dict[str, str], url: URL
    ) -> AsyncIterator[Exchange]:
        """One POST, not sent yet. Its errors note whose they are."""
        exchange = Exchange(
            self._connections,
            "POST",
            url,
            headers=headers,
            timeouts=self._timeouts,
            upstream=self.name,
            content=content,
        )
        del content  # the exchange lets go of it when it has been sent
        try:
            yield exchange
        except UpstreamError as error:
            error.upstream = self.name
            raise
        finally:
            exchange.close()

    async def answer(self, exchange: Exchange, refusals: Refusals) -> Answer:
        """The answer, if it is a 200. Raises `UpstreamError`."""
        response = await exchange.send()
        if response.status == 200:
            return response
        body = await exchange.read_start(_MAX_ERROR_BYTES)
        raise refusals.from_status(response.status, response.headers, body)

    def headers(
        self, theirs: Mapping[str, str], request_id: str, *, stream: bool
    ) -> tuple[dict[str, str], Refusals]:
        """What is sent, by the allow-list, and how refusals of it are told."""
        sent = {
            name.lower(): value
            for name, value in theirs.items()
            if name.lower() in self._forwarded and sendable(value)
        }
        if request_id and sendable(request_id):
            sent["x-request-id"] = request_id
        if self._api_key:
            sent["authorization"] = f"Bearer {self._api_key}"
        if self._basic:
            sent["authorization"] = self._basic
        secret = sent.get("authorization", "").removeprefix("Bearer ")
        if self._dialect.key_header != "authorization" and secret and not self._basic:
            del sent["authorization"]
            sent[self._dialect.key_header] = secret
        if self._dialect.wire is not None:
            sent |= self._dialect.wire.headers
        sent |= self._own_headers
        secrets = tuple(
            value
            for value in (secret, *self._own_headers.values())
            if len(value) >= _MIN_SECRET_CHARS
        )
        sent["accept"] = "text/event-stream" if stream else "application/json"
        sent["content-type"] = "application/json"
        return sent, Refusals(self.name, self._api_key is not None, secrets)

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        """The upstream's `/models` data; `headers` may bring the client's own key."""
        exchange, refusals = self._get_models(headers or {}, self._timeouts)
        try:
            await self.answer(exchange, refusals)
            body = await exchange.read_all(MAX_BODY_BYTES)
        finally:
            exchange.close()
        answer = parse_object(body)
        wire = self._dialect.wire
        data = wire.models(answer) if wire is not None else answer.get("data")
        if not isinstance(data, list) or not all(isinstance(model, dict) for model in data):
            raise UpstreamGarbled(f"upstream {self.name!r} sent a malformed list of models")
        return data

    async def ping(self) -> None:
        """Raise `UpstreamError` unless the server answers `/models` soon, and takes our key.

        Without a key of our own a 401 will do, and so will a server that has no `/models`. One that
        is asked too often is there.
        """
        seconds = self._timeouts.ping
        short = Timeouts(seconds, seconds, seconds, seconds)
        exchange, refusals = self._get_models({}, short)
        try:
            await self.answer(exchange, refusals)
        except UpstreamTimeout:
            raise
        except UpstreamError:
            status = exchange.status
            tolerated = (404, 405, 429) if self._api_key else (401, 403, 404, 405, 429)
            if status not in tolerated:
                raise
        finally:
            exchange.close()

    def _get_models(
        self, headers: Mapping[str, str], timeouts: Timeouts
    ) -> tuple[Exchange, Refusals]:
        sent, refusals = self.headers(headers, "", stream=False)
        wire = self._dialect.wire
        exchange = Exchange(
            self._connections,
            "GET",
            self.below(wire.models_path if wire else "models"),
            headers=sent,
            timeouts=timeouts,
            upstream=self.name,
        )
        return exchange, refusals

    async def close(self) -> None:
        """Close the connection pool."""
        await self._connections.close()


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


def sendable(value: str) -> bool:
    """Whether a header can carry it: printable ASCII, not empty."""
    return bool(value.strip()) and value.isascii() and value.isprintable()
