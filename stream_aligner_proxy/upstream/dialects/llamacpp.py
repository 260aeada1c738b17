"""llama.cpp's server. With `true` it answers prefix + new text, with "content" new text alone."""

from stream_aligner_proxy.upstream.dialects.record import CONTINUE_FINAL, Dialect

DIALECT = Dialect(
    "llamacpp",
    "llama.cpp server",
    'a trailing assistant message with `continue_final_message: "content"`; continuation only',
    body_fields={**CONTINUE_FINAL, "continue_final_message": "content"},
    prompts="ids",
)
