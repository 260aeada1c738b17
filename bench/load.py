"""Many clients at once on the demo's aligner: aligned tokens a second and the longest stall.

    demo    the whole demo: its upstream model writes, its aligner reviews; both share the machine
    replay  the same replies, recorded, from a mock that writes them at once: the aligner alone is
            the bottleneck, so what batching is worth shows

Each with the aligner's batching (`max_batch` as it comes) and without (`max_batch: 1`). Clients ask
one held-out word problem after the other for some seconds; what has begun is finished and counted.
A stall is the longest time between two pieces of text within a reply. Recorded replies cannot be
continued, so `replay` only rewrites.

    python -m bench.load [--seconds 6] [--clients 1,4,16,64,256]
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bench.processes import Generator, unwind_on_sigterm
from bench.report import Row, publish, table
from bench.stack import MODELS, demo_model, free_port, process, stack
from training.world.problems import problems

ALIGNER = {"backend": "transformers", "path": str(MODELS / "aligner")}
BATCHING: Mapping[str, Mapping[str, Any]] = {
    "on": {"aligner": ALIGNER},
    "off": {"aligner": {**ALIGNER, "max_batch": 1}},
}
RECORDED = 48
# The demo's upstream model writes a few hundred tokens a second: more clients only wait for it.
MOST_DEMO_CLIENTS = 16
_PATIENCE_SECONDS = 120.0


def record(base_url: str, model: str, questions: Sequence[str]) -> dict[str, list[str]]:
    """What the upstream writes, delta by delta."""
    recorded: dict[str, list[str]] = {}
    with httpx.Client(timeout=60, trust_env=False) as client:
        for question in questions:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "temperature": 0,
            }
            url = f"{base_url}/chat/completions"
            with client.stream("POST", url, json=body) as answer:
                lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
            deltas = [json.loads(line)["choices"][0]["delta"].get("content") for line in lines]
            recorded[question] = [delta for delta in deltas if delta]
    return recorded


def quantile(values: Sequence[float], share: float) -> float | None:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else None


def measure(
    generator: Generator,
    urls: Mapping[str, str],
    upstream: str,
    levels: Sequence[int],
    **job: Any,
) -> list[Row]:
    rows: list[Row] = []
    for clients in levels:
        for batching in BATCHING:
            port = int(urls[batching].split(":")[2].split("/", 1)[0])
            outcome = generator.run(
                port=port,
                streams=clients,
                requests=0,
                stagger=min(1.0, clients / 50),
                patience=_PATIENCE_SECONDS,
                **job,
            )
            row: Row = {
                "upstream": upstream,
                "clients": clients,
                "batching": batching,
                "aligned_tokens_per_s": outcome["tokens"] / outcome["seconds"],
                "p99_stall_s": quantile(outcome["stalls"], 0.99),
                "first_text_p50_s": quantile(outcome["first_text"], 0.5),
                "first_text_p99_s": quantile(outcome["first_text"], 0.99),
                "replies": len(outcome["stalls"]),
                "failures": len(outcome["failures"]),
            }
            print(" ".join(f"{key}={value}" for key, value in row.items()), file=sys.stderr)
            for failure in outcome["failures"][:3]:
                print(f"  {failure}", file=sys.stderr)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6, help="of asking, per row (default 6)")
    parser.add_argument("--clients", default="1,4,16,64,256")
    options = parser.parse_args()
    unwind_on_sigterm()
    levels = [int(level) for level in options.clients.split(",")]
    questions = [problem.question for problem in problems(11, RECORDED, "test")]
    rows: list[Row] = []
    with ExitStack() as whole:
        generator = Generator(None)
        whole.callback(generator.close)
        folder = Path(whole.enter_context(tempfile.TemporaryDirectory()))
        with stack(BATCHING) as urls:
            model = demo_model(urls["upstream"])
            (folder / "replies.json").write_text(
                json.dumps(record(urls["upstream"], model, questions))
            )
            job = {"model": model, "questions": questions, "seconds": options.seconds}
            few = [level for level in levels if level <= MOST_DEMO_CLIENTS]
            for batching in BATCHING:  # warm
                port = int(urls[batching].split(":")[2].split("/", 1)[0])
                generator.run(port=port, requests=2, **job)
            rows += measure(generator, urls, "demo", few, **job)
        port = free_port()
        arguments = ["bench.mock", "--port", str(port), "--replies", str(folder / "replies.json")]
        base_url = f"http://127.0.0.1:{port}/v1"
        rewriting = {name: {**own, "dialect": "generic"} for name, own in BATCHING.items()}
        with process(arguments, f"{base_url}/models"), stack(rewriting, base_url) as urls:
            job = {"questions": questions, "seconds": options.seconds}
            rows += measure(generator, urls, "replay", levels, **job)
    failed = sum(int(row["failures"] or 0) for row in rows)
    if options.clients == "1,4,16,64,256":
        publish("load", rows, "bench.load")
    else:
        print(table(rows))
    best = {
        batching: max(
            float(row["aligned_tokens_per_s"] or 0)
            for row in rows
            if row["upstream"] == "replay" and row["batching"] == batching
        )
        for batching in BATCHING
    }
    gain = best["on"] / best["off"]
    print(
        f"batching: {best['on']:.0f} against {best['off']:.0f} tokens/s at best, {gain:.2f} times"
    )
    stalls = [float(row["p99_stall_s"] or 0) for row in rows]
    print(f"p99 stall: median {statistics.median(stalls):.3g} s, worst {max(stalls):.3g} s")
    print(f"failures: {failed}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
