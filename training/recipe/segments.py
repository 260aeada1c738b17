"""Attention for packed rows where there is no flash attention: each example by itself.

A block-diagonal mask gives the same result, but computes every block that it then hides: over rows
of 2,048 tokens that costs more than packing saves. Here torch's causal attention runs once for each
example of one long row, whose bounds the batch gives as it does to flash attention.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "segments"


def attend(  # noqa: PLR0917  (transformers calls it so)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: (batch, heads, tokens, width) to (batch, tokens, heads, width)."""
    if attention_mask is not None or more.get("sliding_window") is not None:
        raise ValueError(f"attention {NAME!r} knows neither masks nor windows; use sdpa")
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, None, **more)
    lengths: list[int] = cu_seq_lens_q.diff().tolist()
    parts = zip(*(torch.split(part, lengths, 2) for part in (query, key, value)), strict=True)
    done = [sdpa_attention_forward(module, q, k, v, None, **more)[0] for q, k, v in parts]
    return torch.cat(done, dim=1), None


def fits(config: Any) -> bool:
    """Whether a model's layers see all that precedes: no windows, no capped scores, no sinks."""
    text = config.get_text_config(decoder=True)
    if kinds := getattr(text, "layer_types", None):
        windows = set(kinds) != {"full_attention"}
    else:
        windows = getattr(text, "sliding_window", None) is not None
    capped = getattr(text, "attn_logit_softcapping", None)
    return not windows and not capped and text.model_type != "gpt_oss"


AttentionInterface.register(NAME, attend)
