"""Ollama. A plain trailing assistant message is enough; some models' templates trim it."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "ollama",
    "Ollama",
    "a trailing assistant message; per model: a template may close it",
    proven=False,
    limit_fields=ONLY_MAX_TOKENS,
)
