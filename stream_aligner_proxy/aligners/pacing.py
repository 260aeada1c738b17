"""What a pass of a model costs beside its tokens, on the machine it runs on.

A pass over a few tokens reads every weight once, whatever their number; each token adds arithmetic.
The ratio decides how much of a draft is worth proposing (`drafting.best_width`) and when reading
ahead pays: about 20 tokens for a few million parameters on a CPU core, hundreds on a GPU. Nothing
but speed depends on it.
"""

import time

import torch

from stream_aligner_proxy.aligners.kv import KV
from stream_aligner_proxy.aligners.network import Network

_CONTEXT = 48
_WIDE = 32
_ROUNDS = 4
_BOUNDS = (2.0, 4096.0)


@torch.inference_mode()
def pass_cost(network: Network) -> float:
    """What a pass costs, in tokens of it; measured in about a dozen passes."""
    context = KV.empty(1)
    ids = [5 + n % 3 for n in range(_CONTEXT)]
    _seconds(network, context, ids)
    narrow, wide = [], []
    for _ in range(_ROUNDS):
        narrow.append(_seconds(network, context.prefix(0, _CONTEXT), ids[:1]))
        wide.append(_seconds(network, context.prefix(0, _CONTEXT), ids[:_WIDE]))
    # The least of several: whatever disturbs a pass makes it longer.
    one, many = min(narrow), min(wide)
    each = (many - one) / (_WIDE - 1)
    least, most = _BOUNDS
    return most if each <= 0 else min(max(one / each - 1, least), most)


def _seconds(network: Network, kv: KV, ids: list[int]) -> float:
    begun = time.perf_counter()
    # Reading a number off the device waits for the pass.
    network.forward(kv, [ids], [[]]).max().item()
    return time.perf_counter() - begun
