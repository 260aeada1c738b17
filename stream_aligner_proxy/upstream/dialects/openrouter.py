"""OpenRouter: a trailing assistant message goes to the host, and many hosts begin again."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "openrouter",
    "OpenRouter",
    "a trailing assistant message; depends on the host behind the model",
    proven=False,
    prompts="text",
)
