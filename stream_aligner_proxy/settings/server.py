"""The section `server`: where to listen, how much to take on, how to stop and to reload."""

import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.settings.base import Seconds, Section, relative_to_file

_MIB = 1024 * 1024


class TlsSettings(Section):
    """PEM files, looked at again every `watch_seconds`. `client_ca`: who must have signed the
    certificates that clients show."""

    certificate: Annotated[Path, AfterValidator(relative_to_file)]
    key: Annotated[Path, AfterValidator(relative_to_file)]
    client_ca: Annotated[Path, AfterValidator(relative_to_file)] | None = None
    watch_seconds: Seconds = 10.0

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(filter(None, (self.certificate, self.key, self.client_ca)))


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text != "*" and (not parts.netloc or text != f"{parts.scheme}://{parts.netloc}"):
        raise ValueError("must be an origin such as https://app.example.com, or *")
    return text


class CorsSettings(Section):
    """Pages of which origins may use the API from a browser."""

    origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Field(min_length=1)]


def _network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None
    return text


class ServerSettings(Section):
    """Where to listen, and the limits of the HTTP side.

    `workers`: processes that share the socket; what follows is for each of them. `max_open`: API
    requests served at once, and `max_held_bytes`: bytes of their bodies; what comes above either,
    or while the process has more than `shed_above_mib` of memory, is told to come again.
    `reply_seconds`: what a whole reply may take. `client_seconds`: for so long a client may take
    nothing of what is written to it. `warm_up_seconds`: how long the start waits for the upstreams
    to be probed. On SIGTERM: `drain_seconds` in which readiness is off and requests are still
    taken, then at most `shutdown_seconds` for open replies to end. `watch_seconds`: how often to
    look whether the configuration or a checkpoint has changed; 0 for only when told (SIGHUP).
    `log_format`: `auto` is text on a terminal, else JSON. `log_content`: log what is asked and
    answered. `debug`: serve `/debug`.

    `max_messages`: in one conversation. `max_header_bytes`, `max_headers`: of a request's head;
    `head_seconds` and `body_seconds`: for so long it, and its body, may take to arrive;
    `keep_alive_seconds`: how long a connection is kept for the next request. `trusted_proxies`:
    whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * _MIB
    max_messages: Annotated[int, Field(ge=1)] = 4096
    max_header_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    max_headers: Annotated[int, Field(ge=8)] = 200
    head_seconds: Seconds = 15.0
    body_seconds: Seconds = 120.0
    keep_alive_seconds: Annotated[int, Field(ge=1)] = 5
    tls: TlsSettings | None = None
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    cors: CorsSettings | None = None
    max_choices: Annotated[int, Field(ge=1, le=128)] = 16
    max_open: Annotated[int, Field(ge=1)] = 2000
    max_held_bytes: Annotated[int, Field(ge=1024)] = 512 * _MIB
    shed_above_mib: Annotated[int, Field(ge=64)] | None = None
    reply_seconds: Seconds = 3600.0
    client_seconds: Seconds = 120.0
    warm_up_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    watch_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"
    log_content: bool = False
    debug: bool = False
    page: bool = True
    show_upstream: bool = True
    response_store_bytes: Annotated[int, Field(ge=0)] = 64 * _MIB


# What is settled when the process starts: a reload leaves it as it is.
FIXED = (
    *("host", "port", "workers", "response_store_bytes"),
    *("max_header_bytes", "max_headers", "head_seconds", "body_seconds", "keep_alive_seconds"),
    *("tls", "trusted_proxies", "log_format", "log_content"),
)


def check_server(server: ServerSettings) -> None:
    """Raises `ConfigError` for certificates that cannot be used."""
    if server.tls is not None:
        tls_context(server.tls)


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Of the files as they are now. Raises `ConfigError`."""
    for name in ("certificate", "key", "client_ca"):
        path = getattr(tls, name)
        if path is not None and not path.is_file():
            raise ConfigError(f"server.tls.{name}: {path} does not exist")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key that needs a password would ask for it on the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (OSError, ValueError):
        raise ConfigError(
            "server.tls: certificate and key cannot be read, or do not belong together"
        ) from None
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed shows no certificate: it would outlive its CA, and for ever.
        context.num_tickets = 0
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError:
            raise ConfigError("server.tls.client_ca: holds no certificates") from None
    return context
