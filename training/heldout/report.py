"""The report as JSON, Markdown and one HTML page with its plots inside."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.heldout.plots import reliability, shares
from training.heldout.scores import Judged, Scores, Share

_SHARES = (
    ("keep precision", "keep_precision", "right to leave alone, of what was left alone"),
    ("keep recall", "keep_recall", "left alone, of what should be"),
    ("over-correction", "over_correction", "changed, of what should be left alone"),
    ("found", "found", "changed, of what should be changed"),
    ("fixed", "fixed", "exactly as it should be, of what should be changed"),
    ("exact", "exact", "exactly as it should be, of all"),
    ("unreadable", "unreadable", "output that is no verdict, of all"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """`facts` name what was measured: the checkpoint, the rows, the seed."""

    facts: Mapping[str, str]
    overall: Scores
    sources: Mapping[str, Scores]
    misses: Sequence[Judged]

    def write(self, folder: Path) -> None:
        """`report.json`, `report.md`, `report.html`, `reliability.svg`, `sources.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        plots = {"reliability": reliability(self.overall.bins), "sources": shares(self.sources)}
        for name, plot in plots.items():
            (folder / f"{name}.svg").write_text(plot, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(self.data(), indent=2) + "\n")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        (folder / "report.html").write_text(self.page(plots), encoding="utf-8")

    def data(self) -> dict[str, Any]:
        return {
            "facts": dict(self.facts),
            "overall": _plain(self.overall),
            "sources": {name: _plain(scores) for name, scores in self.sources.items()},
        }

    def table(self) -> list[list[str]]:
        """The shares, a line each, with a column for all rows and one for each source."""
        columns = {"all": self.overall, **(self.sources if len(self.sources) > 1 else {})}
        lines = [["", *columns], ["rows", *(str(one.rows) for one in columns.values())]]
        for title, name, _ in _SHARES:
            lines.append([title, *(_share(getattr(one, name)) for one in columns.values())])
        for title, name in (
            ("likeness to the correction", "likeness"),
            ("the same before", "likeness_before"),
            ("calibration error", "calibration_error"),
            ("Brier", "brier"),
        ):
            lines.append([title, *(_number(getattr(one, name)) for one in columns.values())])
        return lines

    def markdown(self) -> str:
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        head, *lines = self.table()
        rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
        told = "\n".join(f"- **{title}**: {meaning}" for title, _, meaning in _SHARES)
        return (
            f"# Held-out rows\n\n{facts}\n\n" + "\n".join(rows) + f"\n\n{told}\n\n"
            "In brackets: 95 % intervals (Wilson). Likeness: mean Levenshtein ratio over the rows "
            "to be changed.\n\n![reliability](reliability.svg)\n\n![sources](sources.svg)\n"
        )

    def page(self, plots: Mapping[str, str]) -> str:
        head, *lines = self.table()

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        misses = "".join(
            line([m.source, m.sentence, m.expected, m.got if m.got is not None else "(none)"], "td")
            for m in self.misses
        )
        facts = "".join(line([name, value], "td") for name, value in self.facts.items())
        return (
            '<!doctype html><meta charset="utf-8"><title>Held-out rows</title>'
            "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;"
            "padding:0 1rem;color:#1e293b}table{border-collapse:collapse;margin:1rem 0}"
            "td,th{border:1px solid #cbd5e1;padding:.25rem .6rem;text-align:left;"
            "vertical-align:top}</style><h1>Held-out rows</h1>"
            f"<table>{facts}</table><table>{line(head, 'th')}"
            + "".join(line(cells, "td") for cells in lines)
            + f"</table>{plots['reliability']}{plots['sources']}<h2>What went wrong</h2><table>"
            + line(["source", "sentence", "should become", "became"], "th")
            + f"{misses}</table>"
        )


def _share(share: Share) -> str:
    if not share.whole:
        return "-"
    low, high = share.interval
    return f"{share.value:.3f} [{low:.3f}, {high:.3f}] of {share.whole}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(scores: Scores) -> dict[str, Any]:
    data = asdict(scores)
    for _, name, _ in _SHARES:
        share: Share = getattr(scores, name)
        data[name] = {"part": share.part, "of": share.whole, "value": _known(share.value)}
    return {k: _known(v) if isinstance(v, float) else v for k, v in data.items()}


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
