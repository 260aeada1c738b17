"""Amazon Bedrock's OpenAI-compatible endpoint: no partial messages."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "bedrock",
    "Bedrock, OpenAI-compatible",
    "nothing documented",
    ways=("instruct",),
    limit_fields=("max_completion_tokens", "max_tokens"),
)
