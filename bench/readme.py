"""Put the tables of `bench/results` into README.md, between the marks that name them."""

import json
import re

from bench.report import RESULTS, Row, table

README = RESULTS.parent.parent / "README.md"
COLUMNS = {
    "demo_accuracy": (
        "mode",
        "temperature",
        "n",
        "accuracy",
        "corrections_per_reply",
        "over_correction",
        "seconds_per_reply",
        "first_text_seconds",
        "time_over_upstream_alone",
    ),
    "induction": (
        "method",
        "temperature",
        "n",
        "upstream_alone_rude",
        "delivered_rude",
        "later_sentences",
        "later_already_good",
        "corrections_per_reply",
    ),
    "transparency": ("mode", "n", "same_text", "same_finish_reason", "same_usage"),
    "review": ("method", "batch", "changed", "ratio_to_greedy", "identical"),
    "stream": (
        "method",
        "corrected",
        "total_s",
        "first_text_s",
        "longest_stall_s",
        "wasted_tokens",
        "total_over_floor",
        "speedup_over_published_loop",
    ),
}
# Of a large grid the README shows what a reader would ask for first.
CELLS: dict[str, dict[str, tuple[object, ...]]] = {
    "review": {"tokens": (32,), "batch": (1, 16), "changed": (0.0, 0.1, 0.5)},
    "stream": {
        "clock": ("virtual",),
        "tokens_per_s": (50,),
        "review_ms": (200,),
        "sentences": (20,),
        "corrected": (0.0, 0.2),
        "method": ("upstream_alone", "ours", "published_loop", "whole"),
    },
}

# Where each measure of a gateway is taken from: the scenario that was made for it.
GATEWAY = {
    "cpu_s_per_1000_chunks": ("c50", "cpu_s_per_1000"),
    "chunks_per_s_on_one_core": ("max", "chunks_per_s"),
    "first_text_later_by_ms": ("c1", "added_first_text_ms"),
    "rss_mb": ("c50", "rss_mb"),
    "failures": ("c50", "failures"),
}


def gateways(rows: list[Row]) -> list[Row]:
    """One row for each gateway that ran."""
    found = {(row["target"], row["scenario"]): row for row in rows if row["scenario"]}
    names = [name for name in dict.fromkeys(name for name, _ in found) if name != "direct"]
    return [
        {"gateway": name}
        | {what: found[name, scenario][key] for what, (scenario, key) in GATEWAY.items()}
        for name in names
    ]


def main() -> None:
    text = README.read_text()
    for name in (*COLUMNS, "gateway"):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        rows = json.loads(path.read_text())["rows"]
        if name == "gateway":
            rows = gateways(rows)
        else:
            cells = CELLS.get(name, {})
            rows = [
                {column: row[column] for column in COLUMNS[name]}
                for row in rows
                if all(row[key] in wanted for key, wanted in cells.items())
            ]
        mark = f"<!-- {name} -->"
        block = f"{mark}\n\n{table(rows)}\n\n"
        text = re.sub(rf"{mark}\n(?:\n\|[^\n]*)?(?:\n\|[^\n]*)*\n*", lambda _, b=block: b, text)
    README.write_text(text)


if __name__ == "__main__":
    main()
