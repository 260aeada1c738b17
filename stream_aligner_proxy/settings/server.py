"""The section `server`: where to listen, how much to take on, how to stop and to reload."""

from typing import Annotated, Literal

from pydantic import Field

from stream_aligner_proxy.settings.base import Seconds, Section

_MIB = 1024 * 1024


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
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * _MIB
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
FIXED = ("host", "port", "workers", "response_store_bytes", "log_format", "log_content")
