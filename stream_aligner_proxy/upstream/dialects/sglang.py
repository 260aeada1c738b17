"""SGLang. Without the flag a trailing assistant message becomes a user message, in silence."""

from stream_aligner_proxy.upstream.dialects.record import CONTINUE_FINAL, Dialect

DIALECT = Dialect(
    "sglang",
    "SGLang",
    "a trailing assistant message with `continue_final_message`; continuation only",
    body_fields=CONTINUE_FINAL,
    usage="continuous",
    prompts="ids",
)
