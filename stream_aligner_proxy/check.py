"""`stream-aligner check`: does everything that a configuration names answer?

Tries each upstream and each aligner once and listens on nothing. Addresses and keys are not shown.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream_aligner_proxy.core.errors import ConfigError, UpstreamError
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.guarding import check_access
from stream_aligner_proxy.observing import check_observers
from stream_aligner_proxy.parts import (
    behind_breaker,
    make_aligner,
    make_member,
    start_aligner,
    used_aligners,
)
from stream_aligner_proxy.settings import Settings, UpstreamSettings
from stream_aligner_proxy.treatments import check_treatments, make_treatments
from stream_aligner_proxy.upstream.prober import Prober
from stream_aligner_proxy.upstream.routing.member import Member
from stream_aligner_proxy.upstream.routing.patterns import Pattern

_UPSTREAM_COLUMNS = ("upstream", "answers", "ms", "models", "dialect", "continues by", "class")
_ALIGNER_COLUMNS = ("aligner", "answers", "ms", "backend")


@dataclass(frozen=True, slots=True)
class UpstreamRow:
    """`error` is a code of ours, None where it answers, and `reason` a sentence. `models` is None
    where it lists none."""

    name: str
    dialect: str
    way: str
    kind: str
    milliseconds: float
    models: tuple[str, ...] | None = None
    error: str | None = None
    reason: str | None = None

    def cells(self) -> tuple[str, ...]:
        listed = "-" if self.models is None else str(len(self.models))
        ms = f"{self.milliseconds:.0f}"
        return (self.name, _yes(self.error), ms, listed, self.dialect, self.way, self.kind)


@dataclass(frozen=True, slots=True)
class AlignerRow:
    """`milliseconds` is what loading or asking took, None where it was left out."""

    name: str
    backend: str
    milliseconds: float | None = None
    error: str | None = None

    def cells(self) -> tuple[str, ...]:
        if self.milliseconds is None:
            return (self.name, "not asked", "-", self.backend)
        return (self.name, _yes(self.error), f"{self.milliseconds:.0f}", self.backend)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `notes` are no failures: the proxy would serve."""

    upstreams: Sequence[UpstreamRow]
    aligners: Sequence[AlignerRow]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def serves(self) -> bool:
        errors = [row.error for row in self.upstreams] + [row.error for row in self.aligners]
        return not any(errors)

    def table(self) -> str:
        blocks = [
            _aligned([_UPSTREAM_COLUMNS, *(row.cells() for row in self.upstreams)]),
            _aligned([_ALIGNER_COLUMNS, *(row.cells() for row in self.aligners)]),
        ]
        reasons = [row.reason for row in self.upstreams if row.reason]
        if reasons:
            blocks.append("\n".join(reasons))
        if self.notes:
            blocks.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(blocks)

    def as_json(self) -> Mapping[str, object]:
        return {
            "serves": self.serves,
            "upstreams": [
                {
                    "name": row.name,
                    "dialect": row.dialect,
                    "way": row.way,
                    "class": row.kind,
                    "milliseconds": round(row.milliseconds, 1),
                    "models": row.models,
                    "error": row.error,
                    "reason": row.reason,
                }
                for row in self.upstreams
            ],
            "aligners": [
                {
                    "name": row.name,
                    "backend": row.backend,
                    "milliseconds": row.milliseconds and round(row.milliseconds, 1),
                    "error": row.error,
                }
                for row in self.aligners
            ],
            "notes": list(self.notes),
        }


async def check(settings: Settings, *, load_aligners: bool = True) -> Report:
    """Raises `ConfigError` for what can never work, whoever answers."""
    check_observers(settings)
    access = await check_access(settings)
    made = [make_member(upstream) for upstream in settings.upstreams]
    try:
        aligners = {n: make_aligner(s, n) for n, s in used_aligners(settings).items()}
        upstreams = await asyncio.gather(
            *(_try_upstream(at, *parts) for at, parts in zip(settings.upstreams, made, strict=True))
        )
        rows = [
            await _try_aligner(name, settings_.backend, aligners[name] if load_aligners else None)
            for name, settings_ in used_aligners(settings).items()
        ]
        if load_aligners and not any(row.error for row in rows):
            behind = {
                name: behind_breaker(name, aligners[name], own.breaker).breaker
                for name, own in used_aligners(settings).items()
            }
            check_treatments(settings, make_treatments(settings, behind))
    finally:
        for member, _ in made:
            await member.aclose()
        if load_aligners:
            for aligner in aligners.values():
                await aligner.close()
    notes = _notes(settings, {row.name: row for row in upstreams})
    return Report(upstreams, rows, [*access, *notes])


async def _try_upstream(settings: UpstreamSettings, member: Member, prober: Prober) -> UpstreamRow:
    begun = time.monotonic()
    error, reason, models = None, None, settings.models
    try:
        await member.ping()
    except UpstreamError as failure:
        error, reason = type(failure).code, str(failure)
    milliseconds = 1000 * (time.monotonic() - begun)
    if error is None and models is None:
        try:
            models = tuple(str(model.get("id")) for model in await member.models())
        except UpstreamError:
            models = None  # it has no list, or only for those who bring a key
    if error is None and prober.enabled:
        await prober.probe()
    found = prober.state
    return UpstreamRow(
        member.name,
        str(found["dialect"]),
        str(found["way"]),
        str(found["class"]),
        milliseconds,
        models,
        error,
        reason,
    )


async def _try_aligner(name: str, backend: str, aligner: Aligner | None) -> AlignerRow:
    if aligner is None:
        return AlignerRow(name, backend)
    begun = time.monotonic()
    error = None
    try:
        await start_aligner(aligner, name)
    except ConfigError as failure:
        error = str(failure)
    return AlignerRow(name, backend, 1000 * (time.monotonic() - begun), error)


def _notes(settings: Settings, rows: Mapping[str, UpstreamRow]) -> list[str]:
    """Targets whose upstream lists its models, and not this one."""
    notes = []
    for number, route in enumerate(settings.routes):
        for target in (*route.to, *route.fallback):
            model, listed = target.model or route.model, rows[target.upstream].models
            if listed is None or "*" in model:
                continue
            if not any(Pattern(known).match(model) is not None for known in listed if known):
                notes.append(f"routes[{number}]: {target.upstream} does not list {model}")
    return notes


def _yes(error: str | None) -> str:
    return "yes" if error is None else f"NO: {error}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
