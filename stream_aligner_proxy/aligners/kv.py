"""Key and value caches of a ragged batch, and the prompts worth remembering.

The only file that knows the inside of a transformers cache. Every layer is kept in full (also one
with a sliding window: the mask hides what is outside), because a rejected guess must be taken back
and a sliding layer cannot give back what it dropped.

Rows of one batch have different lengths, so each slot of a row carries the position of its token in
that row, or -1 where it holds padding or a rejected guess. Positions, not slots, decide what a
query may see: junk between two tokens changes nothing.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

NOTHING = -1
# A prompt goes when a newer one shares all but this many tokens of it, and two thirds at least.
_TAIL = 64

Ids = npt.NDArray[np.int64]
# What a growing cache gets beyond what it needs now: a quarter, at least this many tokens.
_ROOM = 32


_Base: Any = DynamicLayer  # its signatures are not typed


class _Layer(_Base):  # type: ignore[misc]
    """One layer's keys and values, grown in place.

    transformers copies the whole cache for each new token. Here the second growth moves it into
    a buffer with room, and those after it write what is new behind what is there. Whoever took a
    view before, sees no change: only what comes after the cache's end is ever written. The first
    growth is exact, for most reviews are over after one pass.
    """

    keys: Tensor
    values: Tensor
    _buffers: tuple[Tensor, Tensor] | None = None
    _grown = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized or not self.keys.numel() or not self._grown:
            self._grown = True
            self._buffers = None
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        have, need = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._buffers is None or not self._fits(need):
            room = need + max(_ROOM, need // 4)
            self._buffers = _moved(self.keys, room), _moved(self.values, room)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, have:need] = new
        self.keys, self.values = (buffer[:, :, :need] for buffer in self._buffers)
        return self.keys, self.values

    def _fits(self, need: int) -> bool:
        """Whether the cache is still the beginning of its buffers, which have room for `need`."""
        assert self._buffers is not None
        return all(
            buffer.shape[2] >= need
            and buffer.data_ptr() == tensor.data_ptr()
            and buffer.stride() == tensor.stride()
            and buffer.shape[0] == tensor.shape[0]
            for buffer, tensor in zip(self._buffers, (self.keys, self.values), strict=True)
        )


def _moved(tensor: Tensor, room: int) -> Tensor:
    """A copy with place for `room` tokens."""
    rows, heads, have, depth = tensor.shape
    buffer = tensor.new_empty((rows, heads, room, depth))
    buffer[:, :, :have] = tensor
    return buffer


class KV:
    """The cache of B rows.

    `cache`: per layer keys and values (B, heads, S, d). `slots`: (B, S) int64 on the CPU, the
    position of each slot's token in its row or `NOTHING`. The positions of a row are 0, 1, 2, …
    in the order of its slots.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], slots: Tensor) -> None:
        self.cache: Any = DynamicCache()
        self.cache.layer_class_to_replicate = _Layer
        self.slots = slots
        for keys, values in layers:
            layer: Any = _Layer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            self.cache.layers.append(layer)

    @classmethod
    def empty(cls, rows: int) -> Self:
        return cls((), torch.empty((rows, 0), dtype=torch.int64))

    @property
    def size(self) -> int:
        """S, the number of slots."""
        return self.slots.shape[1]

    def lengths(self) -> list[int]:
        """How many tokens each row has."""
        return [int(n) for n in (self.slots >= 0).sum(dim=1)]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.keys, layer.values) for layer in self.cache.layers]

    def _replace(self, layers: Sequence[tuple[Tensor, Tensor]], slots: Tensor) -> None:
        for layer, (keys, values) in zip(self.cache.layers, layers, strict=True):
            layer.keys, layer.values = keys, values
        self.slots = slots

    def trim(self) -> None:
        """Drop the slots at the end that no row uses; pack when junk outweighs tokens."""
        used = (self.slots >= 0).any(dim=0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        if end < self.size:
            self._replace(
                [(k[:, :, :end], v[:, :, :end]) for k, v in self.layers()], self.slots[:, :end]
            )
        longest = max(self.lengths(), default=0)
        if self.size > longest + longest // 2 + 64:
            self._pack(longest)

    def _pack(self, longest: int) -> None:
        """Gather each row's tokens to its first slots."""
        order = torch.where(self.slots >= 0, self.slots, torch.iinfo(torch.int64).max)
        index = order.argsort(dim=1, stable=True)[:, :longest]

        def gather(tensor: Tensor) -> Tensor:
            at = index.to(tensor.device)[:, None, :, None]
            return tensor.gather(2, at.expand(-1, tensor.shape[1], -1, tensor.shape[3]))

        self._replace(
            [(gather(k), gather(v)) for k, v in self.layers()], self.slots.gather(1, index)
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        index = torch.tensor(rows, dtype=torch.int64)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index.to(tensor.device))

        self._replace([(pick(k), pick(v)) for k, v in self.layers()], self.slots[index])
        self.trim()

    def prefix(self, row: int, length: int) -> "KV":
        """The first `length` tokens of one row, on their own. A view where it can be: what a cache
        holds is never written again (see `_Layer`)."""
        slots = self.slots[row]
        index = ((slots >= 0) & (slots < length)).nonzero()[:, 0]
        start = int(index[0]) if len(index) else 0
        if len(index) == 0 or int(index[-1]) - start + 1 == len(index):
            stop = start + len(index)
            layers = [
                (k[row : row + 1, :, start:stop], v[row : row + 1, :, start:stop])
                for k, v in self.layers()
            ]
        else:
            layers = [
                (
                    k[row : row + 1].index_select(2, index.to(k.device)),
                    v[row : row + 1].index_select(2, index.to(v.device)),
                )
                for k, v in self.layers()
            ]
        return KV(layers, torch.arange(len(index))[None, :])

    def copy(self) -> "KV":
        """The same in memory of its own."""
        return KV([(k.clone(), v.clone()) for k, v in self.layers()], self.slots.clone())


def join(parts: Sequence[KV]) -> KV:
    """One cache of all the rows of `parts`, in order; shorter ones get empty slots at their end."""
    if len(parts) == 1:
        return parts[0]
    size = max(part.size for part in parts)
    model = next((part.layers() for part in parts if part.size), [])

    def widen(tensor: Tensor) -> Tensor:
        rows, heads, have, depth = tensor.shape
        return torch.cat([tensor, tensor.new_zeros((rows, heads, size - have, depth))], dim=2)

    layers = []
    for number, (keys, values) in enumerate(model):
        pairs = [
            part.layers()[number]
            if part.size
            else (
                keys[:1, :, :0].expand(len(part.slots), -1, -1, -1),
                values[:1, :, :0].expand(len(part.slots), -1, -1, -1),
            )
            for part in parts
        ]
        layers.append(
            (
                torch.cat([widen(k) for k, _ in pairs]),
                torch.cat([widen(v) for _, v in pairs]),
            )
        )
    slots = torch.full((sum(len(part.slots) for part in parts), size), NOTHING)
    row = 0
    for part in parts:
        slots[row : row + len(part.slots), : part.size] = part.slots
        row += len(part.slots)
    return KV(layers, slots)


class _Entry(NamedTuple):
    ids: Ids
    kv: KV


class Prefixes:
    """The caches of the last prompts, at most `tokens` tokens together; the least used go first.

    The prompts of one reply grow at their end, so each review needs only what is new. A prompt that
    holds most of an older one takes its place: one reply does not fill the room.
    """

    def __init__(self, tokens: int) -> None:
        self._room = tokens
        self._held = 0
        self._entries: OrderedDict[tuple[int, ...], _Entry] = OrderedDict()

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return self._held

    def longest(self, prompt: tuple[int, ...]) -> KV | None:
        """The longest remembered beginning of `prompt`, always short of its last token."""
        best, length = None, 0
        ids = np.asarray(prompt)
        for known, entry in reversed(self._entries.items()):
            # One look tells of most that they share no more than was found already.
            if len(known) <= length or entry.ids[length] != ids[length]:
                continue
            shared = min(_shared(entry.ids, ids), len(prompt) - 1)
            if shared > length:
                best, length = known, shared
                if length == len(prompt) - 1:
                    break
        if best is None:
            return None
        self._entries.move_to_end(best)
        return self._entries[best].kv.prefix(0, length)

    def remember(self, prompt: tuple[int, ...], kv: KV, row: int) -> None:
        if len(prompt) > self._room or prompt in self._entries:
            return
        ids = np.asarray(prompt)
        for known, entry in list(self._entries.items()):
            # It must share this much: two thirds, and all but `_TAIL`.
            least = max(-(-2 * len(known) // 3), len(known) - _TAIL)
            if least > len(ids) or entry.ids[least - 1] != ids[least - 1]:
                continue
            if _shared(entry.ids, ids) >= least:
                self._forget(known)
        kept = kv.prefix(row, len(prompt))
        # A view of one row would hold the memory of all of them.
        self._entries[prompt] = _Entry(ids, kept.copy() if len(kv.slots) > 1 else kept)
        self._held += len(prompt)
        while self._held > self._room:
            self._forget(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self._held = 0

    def _forget(self, prompt: tuple[int, ...]) -> None:
        del self._entries[prompt]
        self._held -= len(prompt)


def _shared(a: Ids, b: Ids) -> int:
    """The length of the common beginning."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length
