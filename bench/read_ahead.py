"""What reading ahead saves: the time of a review in the demo, with `aligner.prefill` on and off.

The same problems go to two proxies in turn, once as they are and once at the end of a longer talk.
The first review of a reply has the whole conversation to read, later ones only what is new. Times
are those of the proxy itself (`review_ms` of the extension field): from asking the aligner to its
verdict.
"""

import argparse
from collections import defaultdict
from statistics import median

import httpx
from tqdm import tqdm

from bench.report import Row, publish
from bench.stack import MODELS, demo_model, stack
from training.world.problems import problems

ALIGNER = {"backend": "transformers", "path": str(MODELS / "aligner")}


def review_times(
    client: httpx.Client, url: str, model: str, messages: list[dict[str, str]]
) -> list[float]:
    """Milliseconds of each review of one reply, in order."""
    answer = client.post(
        f"{url}/chat/completions",
        json={
            "model": model,
            "messages": messages,
            "stream_aligner": {"mode": "stream", "provenance": True},
        },
    ).json()
    sentences = answer["stream_aligner"]["sentences"]
    return [sentence["review_ms"] for sentence in sentences if sentence["review_ms"] is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="problems of each kind (default 60)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--turns", type=int, default=3, help="earlier problems in the longer talk")
    options = parser.parse_args()
    asked = problems(options.seed, options.count * (options.turns + 1), "test")
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    proxies = {"on": {"aligner": ALIGNER}, "off": {"aligner": {**ALIGNER, "prefill": False}}}
    with stack(proxies) as urls, httpx.Client(timeout=60, trust_env=False) as client:
        model = demo_model(urls["upstream"])
        for number in tqdm(range(options.count), disable=None):
            problem, *earlier = asked[number :: options.count]
            last = {"role": "user", "content": problem.question}
            talk = [
                message
                for past in earlier
                for message in (
                    {"role": "user", "content": past.question},
                    {"role": "assistant", "content": past.reply},
                )
            ]
            for name, messages in (("one question", [last]), ("longer talk", [*talk, last])):
                for prefill in proxies:
                    first, *later = review_times(client, urls[prefill], model, messages)
                    times[name, prefill, "first"].append(first)
                    times[name, prefill, "later"] += later
    rows: list[Row] = []
    for name in ("one question", "longer talk"):
        for review in ("first", "later"):
            on, off = (median(times[name, prefill, review]) for prefill in ("on", "off"))
            rows.append(
                {
                    "conversation": name,
                    "review": review,
                    "n": len(times[name, "on", review]),
                    "ms": on,
                    "ms_without": off,
                    "ratio": on / off,
                }
            )
    publish("read_ahead", rows, "bench.read_ahead")


if __name__ == "__main__":
    main()
