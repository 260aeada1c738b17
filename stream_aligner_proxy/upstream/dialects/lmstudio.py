"""LM Studio: what a trailing assistant message does depends on the model's template."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "lmstudio",
    "LM Studio",
    "a trailing assistant message, if the model's template leaves it open",
    proven=False,
    prompts="text",
)
