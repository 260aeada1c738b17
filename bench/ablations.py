"""What the ablations came to: their report as a result beside the others. Trains nothing.

python -m training.ablations --out runs/ablations     # hours
python -m bench.ablations --run runs/ablations
"""

import argparse
import json
import shutil
from pathlib import Path

from bench.report import Row, publish
from training.ablations.variants import CHOICES, SIZES

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "ablations.svg"
_SHARES = ("keep_recall", "fixed", "accuracy", "loop_fixed", "loop_over_correction")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/ablations"))
    run = parser.parse_args().run
    report = json.loads((run / "ablations.json").read_text())
    groups = {one.name: "choice" for one in CHOICES} | {one.name: "size" for one in SIZES}
    rows: list[Row] = [
        {
            "group": groups.get(row["variant"], "round"),
            "variant": row["variant"],
            "says": row["says"],
            **{name: row[name] for name in _SHARES},
            "wrong_rows": row["fixed_of"],
            "right_rows": row["keep_recall_of"],
            "problems": row["problems"],
        }
        for row in report["variants"]
    ]
    for name, gains in report.get("by_corrections", {}).items():
        rows += [
            {
                "group": "corrections",
                "variant": name,
                "says": f"{gain['corrected']} sentences may be corrected",
                "accuracy": gain["accuracy"],
                "problems": gain["n"],
            }
            for gain in gains
        ]
    publish("ablations", rows, "bench.ablations")
    PICTURE.parent.mkdir(exist_ok=True)
    shutil.copyfile(run / "ablations.svg", PICTURE)


if __name__ == "__main__":
    main()
