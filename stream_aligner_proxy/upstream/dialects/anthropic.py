"""Anthropic's Messages API. Models after the 4.5 generation refuse a partial turn (400)."""

import re

from stream_aligner_proxy.upstream.dialects.record import Dialect
from stream_aligner_proxy.upstream.wires import anthropic

DIALECT = Dialect(
    "anthropic",
    "Anthropic, native",
    "a last turn of the assistant without white space at its end; up to the 4.5 generation",
    models=re.compile(anthropic.PREFILL_MODELS),
    wire=anthropic.AnthropicWire(),
    key_header="x-api-key",
)
