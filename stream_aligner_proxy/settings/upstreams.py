"""The section `upstreams`: the LLM services that write replies."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from stream_aligner_proxy.settings.base import (
    Name,
    Seconds,
    Section,
    base_url,
    give_one_key,
    one_of,
    relative_to_file,
    sendable,
)
from stream_aligner_proxy.settings.breakers import UpstreamBreakerSettings
from stream_aligner_proxy.upstream.dialects import DIALECTS
from stream_aligner_proxy.upstream.routing.patterns import Pattern

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# These belong to the connection or to the body, which are the proxy's.
_OURS = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    )
)


class Timeouts(Section):
    """How long an upstream may take, in seconds."""

    connect: Seconds = 5.0
    first_byte: Seconds = 120.0
    between_chunks: Seconds = 60.0
    total: Seconds = 1800.0


def header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
        raise ValueError("must be the name of a header that is not the proxy's own")
    return name.lower()


def _headers(headers: Mapping[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise ValueError(f"{name[:60]!r} cannot be set: not a header name, or the proxy's own")
        if not sendable(value.get_secret_value()):
            raise ValueError(f"the value of {name} has characters that no header can carry")
    return {name.lower(): value for name, value in headers.items()}


def pattern(text: str) -> str:
    """A model's name, or a pattern with one `*`."""
    Pattern(text)
    return text


class UpstreamSettings(Section):
    """One LLM service. Its key is either written here or read from a named variable.

    `models`: what it serves, names or patterns, instead of asking its `/models`. `retries`: how
    often a request is sent once more when the connection failed before anything was answered.
    `session_header`: the name of a header that carries a hash of the conversation's beginning, for
    a router in front of several replicas.
    """

    name: Name
    base_url: Annotated[str, AfterValidator(base_url)]
    dialect: Annotated[str, AfterValidator(one_of(DIALECTS))]
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    headers: Annotated[dict[str, SecretStr], AfterValidator(_headers)] = Field(default_factory=dict)
    query: dict[str, str] = Field(default_factory=dict)
    continuation: Literal["auto", "ids", "prefill", "instruct", "rewrite-only"] = "auto"
    tokenizer: Annotated[Path, AfterValidator(relative_to_file)] | None = None
    probe: bool = True
    probe_model: Annotated[str, Field(min_length=1)] | None = None
    models: (
        Annotated[tuple[Annotated[str, AfterValidator(pattern)], ...], Field(min_length=1)] | None
    ) = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    session_header: Annotated[str, AfterValidator(header_name)] | None = None
    http2: bool = True
    ca_file: Annotated[Path, AfterValidator(relative_to_file)] | None = None
    timeouts: Timeouts = Timeouts()
    breaker: UpstreamBreakerSettings = UpstreamBreakerSettings()

    @model_validator(mode="after")
    def _one_key(self) -> "UpstreamSettings":
        give_one_key(self)
        return self
