"""Mistral's API. It refuses unknown fields (422), `stream_options` too; usage comes unasked."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "mistral",
    "Mistral",
    "`prefix: true` on the last message; the answer repeats the prefix",
    message_fields={"prefix": True},
    repeats_prefix=True,
    usage="none",
    limit_fields=ONLY_MAX_TOKENS,
)
