"""What remembered prompts hold."""

import torch

from stream_aligner_proxy.aligners.kv import KV, NOTHING, Prefixes
from stream_aligner_proxy.aligners.network import Network
from tests.aligners.models import model


def batch(*lengths: int) -> KV:
    """Rows of these lengths, one layer of one head and depth 1: a token is one float."""
    size = max(lengths)
    slots = torch.full((len(lengths), size), NOTHING)
    for row, length in enumerate(lengths):
        slots[row, :length] = torch.arange(length)
    return KV([(torch.rand(len(lengths), 1, size, 1), torch.rand(len(lengths), 1, size, 1))], slots)


def test_a_remembered_prompt_does_not_hold_the_memory_of_its_batch() -> None:
    prefixes = Prefixes(1000)
    kv = batch(800, 20)
    for row, length in enumerate((800, 20)):
        prefixes.remember((row,) * length, kv, row)
    found = prefixes.longest((1,) * 30)
    assert found is not None
    [(keys, values)] = found.layers()
    assert torch.equal(keys, kv.layers()[0][0][1:, :, :20])
    assert keys.untyped_storage().nbytes() == values.untyped_storage().nbytes() == 20 * 4


def rows_of(kv: KV) -> list[torch.Tensor]:
    return [tensor.clone() for pair in kv.layers() for tensor in pair]


def grow(kv: KV, steps: int, batch: int) -> None:
    """A few tokens more, by way of a model."""
    network = Network(model("llama", 300))
    for step in range(steps):
        network.forward(kv, [[step + 5]] * batch, [[]] * batch)


def test_a_cache_that_grows_step_by_step_is_not_copied_each_time() -> None:
    kv = KV.empty(2)
    grow(kv, 3, 2)
    places = set()
    for _ in range(20):
        grow(kv, 1, 2)
        places.add(kv.layers()[0][0].data_ptr())
    assert len(places) == 1


@torch.inference_mode()
def test_what_was_taken_from_a_cache_stays_when_the_cache_goes_on() -> None:
    kv = KV.empty(1)
    grow(kv, 6, 1)
    taken = kv.prefix(0, 4)
    before = rows_of(taken)
    kv.slots[:, 4:] = -1
    kv.trim()
    grow(kv, 5, 1)
    grow(taken, 3, 1)
    assert taken.size == 7
    assert all(torch.equal(a[:, :, :4], b) for a, b in zip(rows_of(taken), before, strict=True))
    assert all(torch.equal(a[:, :, :4], b) for a, b in zip(rows_of(kv), before, strict=True))
