"""One forward pass of a causal LM over a ragged batch with a cache.

transformers 5 models take a ready-made mask: (B, 1, T, S) or, for models that mix layer types, one
per type. We build it from positions (see `kv`), so rotary and learned positions, sliding windows
and soft-capped attention all see exactly what they would see in a batch of one. Where nothing is
ragged no mask is passed and the model takes its fastest path.
"""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stream_aligner_proxy.aligners.kv import KV, NOTHING

log = logging.getLogger(__name__)

FULL, SLIDING = "full_attention", "sliding_attention"


class Network:
    """A loaded model. Not thread-safe: one thread owns it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        config = model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        self._window: int | None = getattr(config, "sliding_window", None)
        self._mixed = SLIDING in kinds
        # "all layers full" may still carry an unused `sliding_window` in its configuration.
        self._slides = self._window is not None and not kinds
        self._additive = config._attn_implementation == "eager"
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def forward(
        self, kv: KV, pending: Sequence[Sequence[int]], proposals: Sequence[Sequence[int]]
    ) -> Tensor:
        """Run each row's pending tokens (at least one) and, after them, its proposed tokens.

        Returns the logits after the last pending token and after each proposed one, (B, R + 1, V)
        on the model's device, with R the longest proposal; what is beyond a row's own proposal
        means nothing. Grows `kv` by P + R slots, P the longest pending; the caller takes back what
        it rejects.
        """
        wide = max(map(len, pending))
        tail = max(map(len, proposals))
        tokens = torch.zeros((len(pending), wide + tail), dtype=torch.int64)
        positions = torch.full_like(tokens, NOTHING)
        rows = zip(kv.lengths(), pending, proposals, strict=True)
        for row, (length, before, after) in enumerate(rows):
            ids = [*before, *after]
            start = wide - len(before)
            tokens[row, start : start + len(ids)] = torch.tensor(ids)
            positions[row, start : start + len(ids)] = torch.arange(length, length + len(ids))
        slots = torch.cat([kv.slots, positions], dim=1)
        options: dict[str, Any] = {}
        if not torch.equal(slots, torch.arange(slots.shape[1]).expand_as(slots)):
            options["attention_mask"] = self._mask(slots, positions)
            options["position_ids"] = positions.clamp(min=0).to(self.device)
        if self._keeps_logits:
            # The head is a large share of a small model: prompts need none of it but their end.
            options["logits_to_keep"] = tail + 1
        output = self.model(
            input_ids=tokens.to(self.device), past_key_values=kv.cache, use_cache=True, **options
        )
        kv.slots = slots
        logits: Tensor = output.logits[:, -(tail + 1) :]
        return logits

    def _mask(self, slots: Tensor, positions: Tensor) -> Any:
        """What each query sees: (B, 1, T, S), bool, or 0 and the least number for eager."""
        keys = slots.to(self.device)[:, None, None, :]
        queries = positions.to(self.device)[:, None, :, None]
        seen = (keys >= 0) & (keys <= queries)
        # Padding sees itself: a softmax over nothing would be NaN, and NaN spreads.
        own = torch.zeros(
            (positions.shape[1], slots.shape[1]), dtype=torch.bool, device=self.device
        )
        own[:, -positions.shape[1] :].fill_diagonal_(True)
        near = seen & (keys > queries - self._window) if self._window is not None else seen
        if self._mixed:
            return {FULL: self._dress(seen | own), SLIDING: self._dress(near | own)}
        return self._dress((near if self._slides else seen) | own)

    def _dress(self, mask: Tensor) -> Tensor:
        if not self._additive:
            return mask
        dtype = self.model.dtype
        zero = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(mask, zero, torch.finfo(dtype).min)


# Two prompts of different length, as ids that every vocabulary has.
_PROBE = [[5, 7, 6, 5, 8, 7], [6, 8]]


@torch.inference_mode()
def takes_back(network: Network, rows: int, tolerance: float = 0.02) -> bool:
    """Whether the model, with `rows` (1 or 2) sequences in a batch, forgets a rejected guess.

    Compares logits after a rejected token with those of a run that never saw it. With one row the
    cache is cropped; with two it is ragged, so that this also tells whether masks and positions are
    obeyed. Models that keep a state instead of a cache, or take positions from elsewhere than
    `position_ids` (ALiBi), fail. The tolerance is relative, wide enough for bfloat16: a model that
    fails is wrong by far more.
    """
    prompts = _PROBE[:rows]
    none: list[list[int]] = [[]] * rows
    try:
        alone = [network.forward(KV.empty(1), [[*prompt, 9, 4]], [[]]) for prompt in prompts]
        kv = KV.empty(rows)
        network.forward(kv, prompts, [[3]] * rows)
        kv.slots[:, -1] = NOTHING
        if rows == 1:
            kv.trim()
        network.forward(kv, [[9]] * rows, none)
        together = network.forward(kv, [[4]] * rows, none)
    except Exception:
        log.warning("this model does not run with %d rows and a cache", rows, exc_info=True)
        return False
    expected = torch.cat(alone)
    return bool((together - expected).abs().max() <= tolerance * expected.abs().max())
