"""What remembered prompts hold."""

import torch

from stream_aligner_proxy.aligners.kv import KV, NOTHING, Prefixes


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
