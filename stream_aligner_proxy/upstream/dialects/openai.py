"""OpenAI's API. It accepts a trailing assistant message and begins the answer again."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "openai",
    "OpenAI",
    "nothing: a trailing assistant message is accepted, and the answer begins again",
    ways=("instruct",),
    limit_fields=("max_completion_tokens", "max_tokens"),
    thinking="effort",
)
