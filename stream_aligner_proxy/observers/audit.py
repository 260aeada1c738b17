"""The audit log: one line for each reply, with every verdict, for people and for training.

The format is version 1 of `training.data.sources.audit`; the keys beside `conversation` and `units`
say where the reply came from. Off unless a folder is configured. What is written has gone through
the rules of redaction; where those fail the record is dropped, never written as it was. A text
that they are not done with in time is withheld: there is a mark in its place.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from stream_aligner_proxy.core.records import Committed, Cost, Finished, Mode
from stream_aligner_proxy.core.watching import ClosableObserver, Opening, Watch
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts
from stream_aligner_proxy.observers.redacting import Redacting, Redaction

VERSION = 1
_OVERHEAD = 200  # bytes that a unit holds beside its text, about


@dataclass(frozen=True, slots=True)
class Sampling:
    """`share` of the replies, chosen by their request's id, and all that were `corrected` where
    that is set."""

    share: float = 1.0
    corrected: bool = False

    def takes(self, request_id: str) -> bool:
        """The same answer for the same id, whoever asks: a choice can be looked up later."""
        drawn = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big")
        return drawn < self.share * 2**64


class AuditLog(ClosableObserver):
    """`most_chars`: text of one reply that is kept in memory; what comes after it is left out, and
    the record says `truncated`. Several apps of a process may share one."""

    def __init__(
        self,
        files: AuditFiles,
        redaction: Redaction,
        sampling: Sampling,
        counts: Counts,
        *,
        most_chars: int = 1_000_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._redaction = redaction
        self._sampling = sampling
        self._counts = counts
        self._most_chars = most_chars
        self._clock = clock

    def opened(self, opening: Opening) -> Watch:
        if opening.mode is Mode.OFF:
            return Watch()
        chosen = self._sampling.takes(opening.request.request_id)
        if not chosen and not self._sampling.corrected:
            return Watch()
        return _Record(self, opening, chosen, self._most_chars)

    def close(self) -> None:
        """Write what waits; bounded in time."""
        self._files.close()

    def write(self, record: "_Record", told: Mapping[str, Any]) -> None:
        """Leave the record to the writer; what takes time happens there."""
        about = {"time": round(self._clock(), 3), **told}
        self._files.put(lambda: self._line(record, about), record.chars + _OVERHEAD)

    def _line(self, record: "_Record", about: Mapping[str, Any]) -> bytes | None:
        try:
            redact = self._redaction.record()
            opening = record.opening
            line = {
                "v": VERSION,
                "conversation": [
                    {"role": turn.role, "content": redact(turn.text)}
                    for turn in opening.request.conversation
                ],
                "units": [_unit(unit, redact) for unit in record.units],
                **about,
            }
            if redact.withheld:
                line["withheld"] = redact.withheld
                self._counts.withheld(redact.withheld)
            return orjson.dumps(line)
        except Exception:  # noqa: BLE001 - whatever a rule does, nothing is written as it was
            self._counts.dropped("redaction")
            return None


def _unit(unit: Committed, redact: Redacting) -> dict[str, Any]:
    return {**asdict(unit), "original": redact(unit.original), "text": redact(unit.text)}


class _Record(Watch):
    __slots__ = ("_chosen", "_corrected", "_log", "_most", "_truncated", "_upstream", "chars",
                 "opening", "units")  # fmt: skip

    def __init__(self, log: AuditLog, opening: Opening, chosen: bool, most: int) -> None:
        self._log = log
        self._chosen = chosen
        self._most = most
        self._corrected = False
        self._truncated = False
        self._upstream = ""
        self.opening = opening
        self.units: list[Committed] = []
        self.chars = sum(len(turn.text) for turn in opening.request.conversation)

    def branch_answered(self, branch: int, upstream: str) -> None:
        self._upstream = upstream

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        self._corrected |= unit.outcome == "replace"
        size = len(unit.original) + len(unit.text) + _OVERHEAD
        if self._truncated or self.chars + size > self._most:
            self._truncated = True
            return
        self.chars += size
        self.units.append(unit)

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        if not self.units or not (self._chosen or self._corrected):
            return
        opening = self.opening
        told: dict[str, Any] = {
            "request_id": opening.request.request_id,
            "model": opening.request.model,
            "mode": opening.mode,
            "path": opening.path,
            "aligner": opening.aligner,
            "upstream": self._upstream,
            "key": opening.key,
            "outcome": outcome,
            "seconds": round(seconds, 3),
        }
        if self._truncated:
            told["truncated"] = True
        self._log.write(self, told)
