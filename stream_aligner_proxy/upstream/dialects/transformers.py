"""`transformers serve`: no partial messages (422 for the flags, without them a new turn)."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "transformers",
    "transformers serve",
    "nothing: a trailing assistant message opens a new turn, in silence",
    ways=("instruct",),
    usage="none",
    limit_fields=ONLY_MAX_TOKENS,
    prompts="text",
)
