"""Text Generation Inference: continues a trailing assistant message, trimmed; not with tools."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "tgi",
    "Text Generation Inference",
    "a trailing assistant message, trimmed at its end",
    proven=False,
    limit_fields=ONLY_MAX_TOKENS,
    prompts="text",
)
