"""Azure OpenAI: OpenAI's models, the key in a header of its own, an `api-version` in the query."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "azure",
    "Azure OpenAI",
    "nothing, as OpenAI",
    ways=("instruct",),
    limit_fields=("max_completion_tokens", "max_tokens"),
    key_header="api-key",
    thinking="effort",
)
