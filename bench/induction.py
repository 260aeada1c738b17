"""Distribution induction: does one corrected opening make the rest of the reply better by itself?

On requests that tempt the upstream into rude wording, compares continuing from the corrected text
(`stream`) with correcting sentence by sentence while the first branch runs on (`rewrite-only`).
Counted are the sentences after a reply's first corrected one: how many the upstream wrote politely,
so that the aligner had nothing to do.
"""

import argparse
from statistics import mean

import httpx
from tqdm import tqdm

from bench.report import Row, publish
from bench.stack import Reply, ask, demo_model, stack
from training.world.tone import is_rude, requests

# The same proxy, but the second is told that its upstream cannot continue a reply.
PROXIES = {"stream": {}, "rewrite-only": {"alignment": {"max_continuations": 0}}}


def later_sentences(reply: Reply) -> list[bool]:
    """For each sentence after the first corrected one: was the upstream's own wording good?"""
    reviewed = [s for s in reply.sentences if s["verdict"] in ("keep", "replace")]
    first = next((i for i, s in enumerate(reviewed) if s["verdict"] == "replace"), None)
    if first is None:
        return []
    return [not is_rude(s["original"]) for s in reviewed[first + 1 :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="held-out requests (default 300)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    options = parser.parse_args()

    held_out = requests(options.seed, options.count, "test")
    rows: list[Row] = []
    with stack(PROXIES) as urls, httpx.Client(timeout=60, trust_env=False) as client:
        model = demo_model(urls["upstream"])
        for temperature in options.temperatures:
            replies: dict[str, list[Reply]] = {name: [] for name in PROXIES}
            alone: list[Reply] = []
            for index, request in enumerate(tqdm(held_out, desc=f"temperature {temperature}")):
                body = {
                    "model": model,
                    "temperature": temperature,
                    "seed": options.seed * 100_003 + index,
                    "max_tokens": 256,
                }
                alone.append(ask(client, urls["stream"], request.question, mode="off", **body))
                for name, got in replies.items():
                    got.append(ask(client, urls[name], request.question, mode="stream", **body))
            rude_alone = mean(is_rude(reply.text) for reply in alone)
            rows.extend(
                summary(name, temperature, got, rude_alone) for name, got in replies.items()
            )
    publish("induction", rows, "bench.induction")


def summary(name: str, temperature: float, replies: list[Reply], rude_alone: float) -> Row:
    later = [later_sentences(reply) for reply in replies if reply.cost["corrections"]]
    good = [sentence for reply in later for sentence in reply]
    return {
        "method": name,
        "temperature": temperature,
        "n": len(replies),
        "upstream_alone_rude": rude_alone,
        "delivered_rude": mean(is_rude(reply.text) for reply in replies),
        "replies_corrected": len(later),
        "later_sentences": len(good),
        "later_already_good": mean(good) if good else None,
        "corrections_per_reply": mean(reply.cost["corrections"] for reply in replies),
        "seconds_per_reply": mean(reply.total for reply in replies),
    }


if __name__ == "__main__":
    main()
