"""Gemini's OpenAI-compatible endpoint. Nothing documents a partial message there."""

from stream_aligner_proxy.upstream.dialects.record import Dialect

DIALECT = Dialect(
    "gemini-openai",
    "Gemini, OpenAI-compatible",
    "a trailing assistant message, undocumented; depends on the model",
    proven=False,
    thinking="effort",
)
