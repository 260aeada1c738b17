"""An aligner that keeps everything must be invisible: same text, finish reason and usage.

Every reply is asked for twice, of the upstream itself and through the proxy with a rules aligner
that has no rules; some are cut off by a small `max_tokens`. Any difference is counted and shown.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import httpx
from tqdm import tqdm

from bench.report import Row, publish
from bench.stack import ask, demo_model, stack
from training.world.problems import problems
from training.world.tone import requests

MODES = ("stream", "whole", "shadow", "off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="replies per mode (default 300)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    rng = random.Random(options.seed)
    half = options.count // 2
    questions = [problem.question for problem in problems(options.seed, half, "test")]
    questions += [r.question for r in requests(options.seed, options.count - half, "test")]
    same = {mode: {"text": 0, "finish_reason": 0, "usage": 0} for mode in MODES}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as rules:
        Path(rules.name).write_text("[]\n")
        keep_all = {"aligner": {"backend": "rules", "path": rules.name}}
        with stack({"proxy": keep_all}) as urls, httpx.Client(timeout=60, trust_env=False) as http:
            model = demo_model(urls["upstream"])
            for index, question in enumerate(tqdm(questions)):
                body = {
                    "model": model,
                    "temperature": rng.choice([0.0, 0.7, 1.0]),
                    "seed": options.seed * 100_003 + index,
                    "max_tokens": rng.choice([256, 256, 5, 17, 30]),
                }
                alone = ask(http, urls["upstream"], question, **body)
                for mode in MODES:
                    reply = ask(http, urls["proxy"], question, mode=mode, **body)
                    for what, count in same[mode].items():
                        equal = getattr(reply, what) == getattr(alone, what)
                        same[mode][what] = count + equal
                        if not equal:
                            pair = (getattr(alone, what), getattr(reply, what))
                            print(f"{mode}: {what} of {question!r}: {pair}", file=sys.stderr)
    rows: list[Row] = [
        {
            "mode": mode,
            "n": len(questions),
            "same_text": counts["text"],
            "same_finish_reason": counts["finish_reason"],
            "same_usage": counts["usage"],
        }
        for mode, counts in same.items()
    ]
    publish("transparency", rows, "bench.transparency")
    sys.exit(any(count != len(questions) for counts in same.values() for count in counts.values()))


if __name__ == "__main__":
    main()
