"""Put the tables of `bench/results` into README.md, between the marks that name them."""

import json
import re

from bench.report import RESULTS, table

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
}


def main() -> None:
    text = README.read_text()
    for name, columns in COLUMNS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        rows = [{c: row[c] for c in columns} for row in json.loads(path.read_text())["rows"]]
        mark = f"<!-- {name} -->"
        block = f"{mark}\n\n{table(rows)}\n\n"
        text = re.sub(rf"{mark}\n(?:\n\|[^\n]*)?(?:\n\|[^\n]*)*\n*", lambda _, b=block: b, text)
    README.write_text(text)


if __name__ == "__main__":
    main()
