"""Which token comes next: the best one, or one drawn, and how a row's dial moves the choice.

A choice depends on nothing but the row's logits at a place, the row's seed and the number of the
place in its output. So a proposal can be verified whatever the rule is: sampling, too, gives the
same tokens with a draft as without one. It draws by the Gumbel-max trick (the greatest of
logit / temperature + noise), with noise from a generator seeded for each place.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stream_aligner_proxy.aligners.dial import bias
from stream_aligner_proxy.aligners.options import GREEDY, Sampling
from stream_aligner_proxy.aligners.row import Row

# Instead of an infinite bias: arithmetic on it stays finite, and no logit comes near.
MOST = 1e4
_TINY = torch.finfo(torch.float32).tiny


def bias_of(strength: float) -> float:
    """`dial.bias`, held to what can be added to a logit."""
    return min(max(bias(strength), -MOST), MOST)


class Chooser:
    """Chooses for a batch. `keep`: the id of the keep token, where there is one; an answer begins
    with it or does not hold it, for nobody could tell what it means after text. `meaningless`:
    ids that a dialled answer does not begin with: far from what a model would say by itself, its
    second best token may well be a delimiter."""

    def __init__(
        self,
        keep: int | None = None,
        sampling: Sampling = GREEDY,
        meaningless: frozenset[int] = frozenset(),
    ) -> None:
        self._keep = keep
        self._meaningless = sorted(meaningless)
        self._sampling = sampling

    def choose(
        self, logits: Tensor, rows: Sequence[Row], proposals: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], list[list[int]]]:
        """The token after each row's output and after each of its proposed tokens.

        `logits`: (B, R + 1, V) on any device, R the longest proposal; they are written over.
        Returns R + 1 best scores and tokens a row; what is beyond a row's own proposal means
        nothing. A score that is no number tells of a broken row.
        """
        if self._keep is not None:
            # It comes first or not at all.
            logits[:, 1:, self._keep] = -torch.inf
            for number, row in enumerate(rows):
                if row.output:
                    logits[number, 0, self._keep] = -torch.inf
        if any(row.bias for row in rows):
            logits = self._biased(logits, rows, proposals)
        if self._sampling.temperature > 0:
            logits = self._noisy(logits, rows, proposals)
        best, tokens = logits.max(dim=-1)
        return best.float().tolist(), tokens.tolist()

    def _biased(
        self, logits: Tensor, rows: Sequence[Row], proposals: Sequence[Sequence[int]]
    ) -> Tensor:
        places: list[tuple[int, int, int]] = []
        amounts: list[float] = []
        for number, (row, proposal) in enumerate(zip(rows, proposals, strict=True)):
            if not row.bias:
                continue
            if self._keep is not None and not row.output:
                places.append((number, 0, self._keep))
                amounts.append(row.bias)
                places += ((number, 0, token) for token in self._meaningless)
                amounts += [-2 * MOST] * len(self._meaningless)
            if row.bias < 0 or tuple(row.output) != row.draft[: len(row.output)]:
                continue
            ahead = row.draft[len(row.output) :]
            for column, token in enumerate(ahead[: len(proposal) + 1]):
                places.append((number, column, token))
                amounts.append(row.bias)
                if column == len(proposal) or proposal[column] != token:
                    break
        logits = logits.float()
        if places:
            at = torch.tensor(places, device=logits.device).unbind(1)
            logits.index_put_(at, torch.tensor(amounts, device=logits.device), accumulate=True)
        return logits

    def _noisy(
        self, logits: Tensor, rows: Sequence[Row], proposals: Sequence[Sequence[int]]
    ) -> Tensor:
        how = self._sampling
        scores = logits.float() / how.temperature
        if 0 < how.top_k < scores.shape[-1]:
            least = scores.topk(how.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        if how.top_p < 1:
            ordered, order = scores.sort(dim=-1, descending=True)
            chances = ordered.softmax(dim=-1)
            # The tokens before it have the share already; the first always stays.
            out = chances.cumsum(dim=-1) - chances >= how.top_p
            scores = scores.masked_fill(out.scatter(-1, order, out), -math.inf)
        generator = torch.Generator(device=scores.device)
        for number, (row, proposal) in enumerate(zip(rows, proposals, strict=True)):
            for column in range(len(proposal) + 1):
                generator.manual_seed(_mixed(row.seed, len(row.output) + column))
                noise = torch.empty_like(scores[number, column]).exponential_(generator=generator)
                scores[number, column] -= noise.clamp_min(_TINY).log()
        return scores


def _mixed(seed: int, place: int) -> int:
    """A seed for one place: neighbours must have nothing in common (splitmix64)."""
    mask = (1 << 64) - 1
    value = (seed + (place + 1) * 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
