"""Groq: prefilling by a trailing assistant message, not with every model."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "groq",
    "Groq",
    "a trailing assistant message; depends on the model",
    proven=False,
    limit_fields=("max_completion_tokens", "max_tokens"),
    thinking="effort",
)
