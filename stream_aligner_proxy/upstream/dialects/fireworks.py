"""Fireworks: a partial message is not documented for chat."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "fireworks",
    "Fireworks",
    "a trailing assistant message, undocumented; depends on the model",
    proven=False,
    limit_fields=ONLY_MAX_TOKENS,
    prompts="ids",
)
