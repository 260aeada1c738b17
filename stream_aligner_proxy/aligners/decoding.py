"""Decoding that verifies a draft, for a batch of rows at different stages.

A step runs every row once: its pending tokens (at first the prompt, then the last token chosen) and
a proposal. The longest run of the proposal that plain decoding would have chosen (`choosing`: the
best token, or a drawn one) is accepted, and one token more, which the same pass already knows. So
the output is the one of plain decoding, token for token, whatever was proposed; in bf16 and fp16
two passes of different width may round a tie differently.

After a keep token that comes first only control tokens can be meant (`encoding`): the first
ordinary token ends the row.

Rows join (`Decoder.begin`, then `Batch.absorb`) and leave between any two steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from stream_aligner_proxy.aligners.choosing import Chooser
from stream_aligner_proxy.aligners.drafting import DraftCursor, Trust, best_width, groups
from stream_aligner_proxy.aligners.kv import KV, NOTHING, Prefixes, join
from stream_aligner_proxy.aligners.network import Network
from stream_aligner_proxy.aligners.options import GREEDY, Sampling
from stream_aligner_proxy.aligners.row import Row

Method = Literal["verify", "greedy"]

# Measured with a few million parameters on one CPU core; `pacing` measures the model at hand.
PASS_COST = 20.0


@dataclass(eq=False, slots=True)
class _Lane:
    row: Row
    cursor: DraftCursor
    pending: Sequence[int]


@dataclass(eq=False, slots=True)
class Batch:
    """Rows that share forward passes, and their cache."""

    lanes: list[_Lane]
    kv: KV

    @classmethod
    def none(cls) -> Self:
        return cls([], KV.empty(0))

    def clear(self) -> None:
        self.lanes, self.kv = [], KV.empty(0)

    def rows(self) -> list[Row]:
        return [lane.row for lane in self.lanes]

    def absorb(self, other: "Batch") -> None:
        """Take over another batch's rows."""
        if other.lanes:
            self.kv = join([self.kv, other.kv]) if self.lanes else other.kv
            self.lanes = [*self.lanes, *other.lanes]

    def keep(self, rows: Sequence[Row]) -> None:
        """Drop every row that is not in `rows`."""
        stay = [number for number, lane in enumerate(self.lanes) if lane.row in rows]
        if len(stay) == len(self.lanes):
            self.kv.trim()
            return
        if not stay:
            self.clear()
            return
        self.lanes = [self.lanes[number] for number in stay]
        self.kv.select(stay)


class Decoder:
    """Decodes batches with one network.

    `ends`: the token ids that end an output. `controls`: those that mark something, `ends` among
    them. `meaningless`: see `Chooser`. `keep`: the id a profile uses to say "unchanged"; it
    is what the first pass proposes, so that a kept sentence costs one pass over its prompt and one
    token. A checkpoint that leaves sentences unchanged by repeating them is found out, and then the
    first pass proposes the draft: one pass again. `pass_cost`: what a pass costs beside its tokens,
    in tokens (see `best_width`); it decides how much is proposed at once. `method="greedy"`
    proposes nothing: the plain reference, for tests and benchmarks.
    """

    def __init__(
        self,
        network: Network,
        ends: frozenset[int],
        *,
        keep: int | None = None,
        controls: frozenset[int] = frozenset(),
        meaningless: frozenset[int] = frozenset(),
        sampling: Sampling = GREEDY,
        method: Method = "verify",
        prefixes: Prefixes | None = None,
        pass_cost: float = PASS_COST,
    ) -> None:
        self._network = network
        self._ends = ends
        self._keep = keep
        self._controls = controls | ends | {keep}
        self._chooser = Chooser(keep, sampling, meaningless)
        self._method = method
        self._prefixes = prefixes
        self._pass_cost = pass_cost
        self._trust = Trust()
        self._said_keep = self._repeated = 0  # how unchanged sentences were answered so far

    @torch.inference_mode()
    def begin(self, rows: Sequence[Row]) -> Batch:
        """A batch of new rows, nothing run yet; it starts from remembered prompts where it can."""
        return self._batch([self._lane(row) for row in rows])

    @torch.inference_mode()
    def begin_apart(self, rows: Sequence[Row]) -> list[Batch]:
        """The same as several batches, where a pass for each costs less than the padding of one."""
        begun = [self._lane(row) for row in rows]
        lengths = [len(lane.pending) + len(self._propose(lane)) for lane, _ in begun]
        return [
            self._batch([begun[number] for number in group])
            for group in groups(lengths, self._pass_cost)
        ]

    def _lane(self, row: Row) -> tuple[_Lane, KV]:
        known = self._prefixes.longest(row.prompt) if self._prefixes else None
        cursor = DraftCursor(row.draft if self._method == "verify" else (), self._trust)
        pending = row.prompt[known.size if known else 0 :]
        return _Lane(row, cursor, pending), known or KV.empty(1)

    @staticmethod
    def _batch(begun: list[tuple[_Lane, KV]]) -> Batch:
        if not begun:
            return Batch.none()
        return Batch([lane for lane, _ in begun], join([kv for _, kv in begun]))

    @torch.inference_mode()
    def prefill(self, ids: tuple[int, ...], *, least: int, most: int) -> bool:
        """Run the beginning of a prompt that is to come, so that it is remembered.

        At most `most` tokens in this pass, and none where fewer than `least` are missing. Returns
        whether more is to be done.
        """
        if self._prefixes is None or not ids:
            return False
        known = self._prefixes.longest((*ids, -1))
        start = known.size if known else 0
        if len(ids) - start < max(least, 1):
            return False
        end = min(start + most, len(ids))
        kv = known or KV.empty(1)
        self._network.forward(kv, [ids[start:end]], [[]])
        self._prefixes.remember(ids[:end], kv, 0)
        return len(ids) - end >= least

    @torch.inference_mode()
    def step(self, batch: Batch) -> list[Row]:
        """One forward pass; returns the rows that finished in it, which have left the batch.

        Whatever the model raises passes through: the batch is then lost.
        """
        lanes = batch.lanes
        proposals = self._narrow(lanes, [self._propose(lane) for lane in lanes])
        logits = self._network.forward(batch.kv, [lane.pending for lane in lanes], proposals)
        best, chosen = self._chooser.choose(logits, batch.rows(), proposals)
        tail = max(map(len, proposals))
        start = batch.kv.size - tail
        for number, (lane, proposal) in enumerate(zip(lanes, proposals, strict=True)):
            if not lane.row.output and self._prefixes:
                self._prefixes.remember(lane.row.prompt, batch.kv, number)
            accepted = self._accept(lane, proposal, chosen[number], best[number])
            batch.kv.slots[number, start + accepted :] = NOTHING
        finished = [lane.row for lane in lanes if lane.row.finished]
        for row in finished:
            self._said_keep += bool(row.output) and row.output[0] == self._keep
            self._repeated += tuple(row.output) == row.draft
        batch.keep([lane.row for lane in lanes if not lane.row.finished])
        return finished

    def _propose(self, lane: _Lane) -> list[int]:
        row = lane.row
        if self._method == "greedy":
            return []
        room = row.max_new - len(row.output) - 1
        if self._keep is not None and not row.output and self._said_keep >= self._repeated:
            return [self._keep][:room]
        return lane.cursor.propose(room)

    def _narrow(self, lanes: Sequence[_Lane], proposals: list[list[int]]) -> list[list[int]]:
        """Cut the proposals to the width that pays; rows share it, since a pass is a rectangle."""
        if not any(proposals):
            return proposals
        odds = [
            (1.0, 1.0) if proposal[:1] == [self._keep] else lane.cursor.odds()
            for lane, proposal in zip(lanes, proposals, strict=True)
        ]
        width = best_width(odds, list(map(len, proposals)), self._pass_cost)
        return [proposal[:width] for proposal in proposals]

    def _accept(
        self, lane: _Lane, proposal: list[int], chosen: list[int], best: list[float]
    ) -> int:
        """Extend the row by what greedy decoding chose; how many proposed tokens stay cached."""
        row = lane.row
        row.passes += 1
        accepted = 0
        while True:
            if not math.isfinite(best[accepted]):
                row.finished = "broken"
                return accepted
            token = chosen[accepted]
            row.output.append(token)
            kept = row.output[0] == self._keep
            if token in self._ends or (kept and token not in self._controls):
                row.finished = "end"
                return accepted
            if len(row.output) >= row.max_new:
                row.finished = "limit"
                return accepted
            if accepted == len(proposal) or token != proposal[accepted]:
                break
            accepted += 1
        if proposal[:1] == [self._keep]:  # not the draft: data never holds this id
            if accepted:
                lane.cursor = DraftCursor(())
            else:
                lane.cursor.advance(0, 0, token)
        else:
            lane.cursor.advance(len(proposal), accepted, token)
        lane.pending = [token]
        return accepted
