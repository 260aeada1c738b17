"""Whatever speaks OpenAI's chat API. What it does with a partial message is found out."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "generic",
    "any other",
    "unknown: a trailing assistant message is tried",
    proven=False,
    prompts="text",
)
