"""Gemini's own API (generateContent). A partial turn is undocumented, but works (see the wire)."""

import re

from stream_aligner_proxy.upstream.dialects.record import Dialect
from stream_aligner_proxy.upstream.wires import gemini

DIALECT = Dialect(
    "gemini",
    "Gemini, native",
    "a last turn of the model; the newest flash models answer a 400",
    proven=False,
    models=re.compile(gemini.PREFILL_MODELS),
    wire=gemini.GeminiWire(),
    key_header="x-goog-api-key",
)
