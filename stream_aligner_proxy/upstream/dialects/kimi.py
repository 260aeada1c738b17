"""Moonshot's Kimi API."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "kimi",
    "Kimi (Moonshot)",
    "`partial: true` on the last message; continuation only",
    message_fields={"partial": True},
)
