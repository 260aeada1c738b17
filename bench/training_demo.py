"""What `make train` came to: its report as a result beside the others. Trains nothing."""

import argparse
import json
from pathlib import Path

from bench.report import Row, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-aligner"))
    report = json.loads((parser.parse_args().run / "report.json").read_text())
    found: Row = {
        "training_seconds": report["training_seconds"],
        "seconds": report["seconds"],
        "heldout_rows": report["rows"]["rows"],
        "kept": report["rows"]["kept"],
        "fixed": report["rows"]["fixed"],
        "over_correction": report["rows"]["spoiled"],
    }
    for row in report["loop"]:
        name = "upstream_alone" if row["mode"] == "off" else "with_aligner"
        found[f"accuracy_{name}"] = row["accuracy"]
        found["problems"] = row["n"]
    publish("training_demo", [found], "bench.training_demo")


if __name__ == "__main__":
    main()
