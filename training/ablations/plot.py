"""The table as a picture: a bar for each share of each run, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.ablations.variants import CHOICES, ROUNDS, SIZES, Variant
from training.heldout.plots import safe, svg
from training.heldout.scores import Share

_LEFT, _WIDTH, _BAR, _STEP = 150, 380, 9, 40
_SERIES = (
    ("keep_recall", "#94a3b8", "right sentences left alone"),
    ("fixed", "#2563eb", "wrong sentences answered by the right one"),
    ("accuracy", "#16a34a", "problems answered rightly by upstream and aligner"),
)
_GROUPS: tuple[tuple[str, Sequence[Variant]], ...] = (
    ("Choices of the recipe", CHOICES),
    ("Size, each from a base of its own", SIZES),
    ("A further round", ROUNDS),
)
_GAIN = "By how many sentences may be corrected"
_NAMES = {"base": "trained in minutes (base)", "better": "the demo's own aligner"}


def draw(report: Mapping[str, Any]) -> str:
    """The whole report as one SVG."""
    found = {row["variant"]: row for row in report["variants"]}
    parts, y = [_legend()], 80.0
    for title, variants in _GROUPS:
        rows = [found[one.name] for one in variants if one.name in found]
        if rows:
            parts.append(_title(title, y))
            for number, row in enumerate(rows):
                parts.append(_shares(row, y + 16 + number * _STEP))
            y += 50 + len(rows) * _STEP
    for name, gains in report.get("by_corrections", {}).items():
        parts.append(_title(f"{_GAIN}: {_NAMES[name]}", y))
        for number, gain in enumerate(gains):
            top = y + 16 + number * 20
            interval = _wilson(gain["accuracy"], gain["n"])
            parts.append(_name(f"{gain['corrected']} corrected", top + 9))
            parts.append(_bar(gain["accuracy"], interval, top, _SERIES[2][1]))
        y += 50 + len(gains) * 20
    return svg(_LEFT + _WIDTH + 70, y, "Ablations on the demo world", "".join(parts))


def _legend() -> str:
    return "".join(
        f'<rect x="12" y="{12 + at * 18}" width="12" height="{_BAR}" fill="{colour}"/>'
        f'<text x="30" y="{21 + at * 18}">{safe(says)} (with 95 % interval)</text>'
        for at, (_, colour, says) in enumerate(_SERIES)
    )


def _title(text: str, y: float) -> str:
    return f'<text x="12" y="{y:.0f}" font-weight="bold">{safe(text)}</text>'


def _name(text: str, y: float) -> str:
    return f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end">{safe(text)}</text>'


def _shares(row: Mapping[str, Any], y: float) -> str:
    drawn = [_name(row["variant"], y + 18)]
    for at, (key, colour, _) in enumerate(_SERIES):
        value = row[key]
        low_high = row.get(f"{key}_interval") or _wilson(value, row["problems"])
        drawn.append(_bar(value, low_high, y + at * (_BAR + 2), colour))
    return "".join(drawn)


def _bar(value: float, interval: Sequence[float], y: float, colour: str) -> str:
    low, high = (_LEFT + _WIDTH * end for end in interval)
    middle = y + _BAR / 2
    return (
        f'<rect x="{_LEFT}" y="{y:.1f}" width="{_WIDTH * value:.1f}" height="{_BAR}" '
        f'fill="{colour}"/><path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="#0f172a"/>'
        f'<text x="{high + 5:.1f}" y="{y + _BAR:.1f}" font-size="10">{value:.3f}</text>'
    )


def _wilson(share: float, count: int) -> tuple[float, float]:
    return Share(round(share * count), count).interval
