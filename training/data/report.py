"""`report.json`, `report.md` and, where matplotlib is installed, plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from training.data.rows import KINDS
from training.data.tally import LENGTHS
from training.data.writing import whole_file

_SAMPLE_CHARS: Final = 300


def write(out: Path, data: Mapping[str, Any]) -> list[str]:
    """Write the report into a folder; return what to tell the user."""
    with whole_file(out / "report.json") as partial:
        partial.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    plots, said = _plots(out, data)
    with whole_file(out / "report.md") as partial:
        partial.write_text("\n".join([*_page(data), *plots, ""]), encoding="utf-8")
    return said


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def counts(data: Mapping[str, Any]) -> list[str]:
    """Rows by source and kind."""
    body = []
    for source, forms in data["sources"].items():
        sentences, whole = forms.get("sentence", {}), forms.get("whole", {})
        body.append([
            source, *(sentences.get(kind, 0) for kind in KINDS),
            whole.get("keep", 0), whole.get("fix", 0),
        ])  # fmt: skip
    return table(["source", *KINDS, "whole keep", "whole fix"], body)


def reading(read: Mapping[str, Any]) -> list[str]:
    """What was read, and what became of what is not in the rows."""
    body = []
    for source, one in read.items():
        why = [*one["rejected"].items(), *one["set_aside"].items(), *one["filtered"].items()]
        if one["duplicates"]:
            why.append(("duplicate rows", one["duplicates"]))
        body.append([
            source, one["records"], one["rows"], sum(one["rejected"].values()),
            sum(one["set_aside"].values()),
            sum(one["filtered"].values()) + one["duplicates"],
            "; ".join(f"{reason}: {count}" for reason, count in why) or "-",
        ])  # fmt: skip
    head = ["source", "records", "rows", "bad records", "set aside", "rows left out", "why"]
    return table(head, body)


def _page(data: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# Training rows", "", f"{data['rows']} rows, fingerprint `{data['fingerprint']}`.")
    if data["contradictions"]:
        yield f"{data['contradictions']} reviews are kept in one row and changed in another."
    if read := data.get("read"):
        yield from ("", "## Read", "", *reading(read))
    yield from ("", "## Rows", "", *counts(data), "", f"{data['ends']} of them end the reply.")
    if splits := data.get("splits"):
        head = ["split", "rows", "questions", "keep share of sentences", "fingerprint"]
        body = [
            [name, one["rows"], one["questions"], one["keep_share"], f"`{one['fingerprint'][:16]}`"]
            for name, one in splits.items()
        ]
        yield from ("", "## Splits", "", *table(head, body))
    yield from ("", "## Lengths (characters)", "")
    body = [[name, one["mean"], *one["counts"]] for name, one in data["lengths"].items()]
    yield from table(["", "mean", *(f"from {edge}" for edge in LENGTHS)], body)
    edits = data["edit_shares"]
    yield from ("", "## Edit distance of fixes (share of the longer text)", "")
    yield from table(["mean", *map(str, edits["edges"])], [[edits["mean"], *edits["counts"]]])
    yield from ("", "## Samples", "")
    for name, kept in data["samples"].items():
        yield f"### {name}"
        for one in kept:
            shown = {key: _short(value) for key, value in one.items() if key != "group"}
            yield from ("", "```json", json.dumps(shown, ensure_ascii=False, indent=1), "```")
        yield ""


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SAMPLE_CHARS:
        return f"{value[: _SAMPLE_CHARS // 2]} … {value[-_SAMPLE_CHARS // 2 :]}"
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return value


def _plots(out: Path, data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Write the plots; return the lines that show them, and what to tell the user."""
    try:
        figure = import_module("matplotlib.figure")
    except ImportError:
        return [], ["no plots: matplotlib is not installed (pip install matplotlib)"]
    histograms = [
        ("lengths.png", "characters", data["lengths"]),
        ("edits.png", "edit distance / longer text", {"fixes": data["edit_shares"]}),
    ]
    lines = ["## Plots", ""]
    for name, axis, found in histograms:
        if not found:
            continue
        drawn = figure.Figure(figsize=(9, 2.4 * len(found)), layout="constrained")
        for at, (title, one) in enumerate(found.items()):
            axes = drawn.add_subplot(len(found), 1, at + 1)
            axes.bar([str(edge) for edge in one["edges"]], one["counts"])
            axes.set_title(title)
            axes.set_ylabel("rows")
            axes.tick_params(axis="x", labelrotation=45)
        drawn.supxlabel(f"{axis}, from")
        with whole_file(out / name) as partial:
            drawn.savefig(partial, format="png")
        lines += [f"![{name}]({name})", ""]
    return lines, []
