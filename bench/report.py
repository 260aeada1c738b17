"""Where every benchmark and evaluation puts its numbers: a printed table and a JSON file."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "stream-aligner-proxy",
    "torch",
    "transformers",
    "aiohttp",
    "fastapi",
    "uvicorn",
    "uvloop",
)

Row = dict[str, str | int | float | bool | None]


def machine() -> str:
    """CPU model and the number of usable cores."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; columns in the order of the first row."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _without_folder(argument: str) -> str:
    """Results are published: no place of the machine they were made on."""
    return argument.rpartition("/")[2] if argument.startswith("/") else argument


def publish(
    name: str, rows: Sequence[Row], module: str, others: Mapping[str, str] | None = None
) -> Path:
    """Print the table and write `bench/results/NAME.json`; `others` are versions of what was
    measured beside us."""
    print(table(rows))
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    report = {
        "command": " ".join(["python", "-m", module, *map(_without_folder, sys.argv[1:])]),
        "machine": machine(),
        "versions": versions() | dict(others or {}),
        "rows": list(rows),
    }
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
    print(f"\nwritten to bench/results/{path.name}", file=sys.stderr)
    return path
