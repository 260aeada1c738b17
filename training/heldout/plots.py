"""Two plots as SVG, without a library: the report is one file that opens anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.heldout.scores import BINS, Bin, Scores

_SIDE, _MARGIN = 300, 44
_INK, _BAR, _LINE = "#334155", "#2563eb", "#94a3b8"


def reliability(bins: Sequence[Bin], title: str = "How sure, and how right") -> str:
    """How often keeping was right against how likely it was; on the diagonal they agree. A dot's
    area grows with its rows."""
    total = sum(one.count for one in bins) or 1
    dots = []
    for one in bins:
        if one.count:
            x, y = _at(one.chance, one.kept / one.count)
            radius = 3 + 14 * (one.count / total) ** 0.5
            dots.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_BAR}" '
                f'fill-opacity="0.6"><title>{one.count} rows: {one.chance:.2f} sure, '
                f"{one.kept / one.count:.2f} right</title></circle>"
            )
    (x0, y0), (x1, y1) = _at(0, 0), _at(1, 1)
    diagonal = (
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{_LINE}" stroke-dasharray="4 4"/>'
    )
    return _framed(title, "chance of keeping", "keeping was right", diagonal + "".join(dots))


def shares(named: Mapping[str, Scores], title: str = "By source") -> str:
    """For each set of rows: kept of what is right, and fixed of what is wrong."""
    row, left, width = 34, 150, 260
    bars = []
    for number, (name, scores) in enumerate(named.items()):
        y = 30 + number * row
        bars.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{safe(name)}</text>')
        pairs = ((scores.keep_recall, _LINE), (scores.fixed, _BAR))
        for line, (share, colour) in enumerate(pairs):
            if share.whole:
                bars.append(
                    f'<rect x="{left}" y="{y + line * 12}" width="{width * share.value:.1f}" '
                    f'height="10" fill="{colour}"/><text x="{left + width * share.value + 4:.1f}" '
                    f'y="{y + 9 + line * 12}" font-size="10">{share.value:.3f} of '
                    f"{share.whole}</text>"
                )
    height = 40 + row * len(named)
    legend = (
        f'<text x="{left}" y="18"><tspan fill="{_LINE}">kept of what is right</tspan>'
        f' <tspan fill="{_BAR}">fixed of what is wrong</tspan></text>'
    )
    return svg(left + width + 110, height, title, legend + "".join(bars))


def _at(x: float, y: float) -> tuple[float, float]:
    return (_MARGIN + x * _SIDE, 24 + (1 - y) * _SIDE)


def _framed(title: str, across: str, up: str, inside: str) -> str:
    ticks = []
    for number in range(0, BINS + 1, 2):
        value = number / BINS
        x, y = _at(value, 0)
        ticks.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{value:.1f}</text>')
        x, y = _at(0, value)
        ticks.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{value:.1f}</text>')
    frame = (
        f'<rect x="{_MARGIN}" y="24" width="{_SIDE}" height="{_SIDE}" fill="none" '
        f'stroke="{_LINE}"/>'
    )
    middle = _MARGIN + _SIDE / 2
    words = (
        f'<text x="{middle}" y="{24 + _SIDE + 34}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(12 {24 + _SIDE / 2}) rotate(-90)" text-anchor="middle">{up}'
        "</text>"
    )
    return svg(_SIDE + _MARGIN + 20, _SIDE + 70, title, frame + inside + "".join(ticks) + words)


def svg(width: float, height: float, title: str, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}" role="img">'
        f"<title>{safe(title)}</title>"
        f'<rect width="100%" height="100%" fill="white"/>{inside}</svg>'
    )


def safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
