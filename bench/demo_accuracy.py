"""Final-answer accuracy on the demo world: the upstream alone against each mode of the proxy.

For every held-out problem all modes are asked in turn, so that a noisy machine slows all of them
alike. A sentence that was right, given what was committed before it, and was made wrong counts as
over-corrected.
"""

import argparse
from pathlib import Path
from statistics import mean, median

import httpx
from tqdm import tqdm

from bench.report import Row, publish, table
from bench.stack import Reply, ask, demo_model, stack
from training.world.judge import grade, judge_reply, judge_step
from training.world.problems import Problem, problems

MODES = ("off", "whole", "stream", "shadow")


def sentence_counts(problem: Problem, mode: str, reply: Reply) -> tuple[int, int]:
    """How many of the upstream's sentences were right when reviewed, and made wrong."""
    right = wrong = 0
    if mode == "whole":
        original = "".join(sentence["original"] for sentence in reply.sentences)
        after = judge_reply(problem, reply.text)
        for i, before in enumerate(judge_reply(problem, original)):
            right += before.right
            wrong += before.right and not (i < len(after) and after[i].right)
        return right, wrong
    committed = ""
    for sentence in reply.sentences:
        original, text = sentence["original"], sentence["text"]
        if original.strip() and judge_step(problem, committed, original.strip()).right:
            right += 1
            wrong += not judge_step(problem, committed, text.strip()).right
        committed += original if mode == "shadow" else text
    return right, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="held-out problems (default 500)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the problems (default 7)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument(
        "--aligner", type=Path, help="measure this checkpoint instead; its table is printed only"
    )
    options = parser.parse_args()

    proxy = {}
    if options.aligner:
        proxy["aligner"] = {"backend": "transformers", "path": str(options.aligner.resolve())}
    held_out = problems(options.seed, options.count, "test")
    rows: list[Row] = []
    with stack({"proxy": proxy}) as urls, httpx.Client(timeout=60, trust_env=False) as client:
        model = demo_model(urls["upstream"])
        for mode in options.modes:  # everything is warm before the first measurement
            ask(client, urls["proxy"], held_out[0].question, mode=mode, model=model)
        for temperature in options.temperatures:
            replies: dict[str, list[Reply]] = {mode: [] for mode in options.modes}
            for index, problem in enumerate(tqdm(held_out, desc=f"temperature {temperature}")):
                for mode in options.modes:
                    reply = ask(
                        client,
                        urls["proxy"],
                        problem.question,
                        mode=mode,
                        model=model,
                        temperature=temperature,
                        seed=options.seed * 100_003 + index,
                        max_tokens=256,
                    )
                    replies[mode].append(reply)
            rows.extend(
                summary(mode, temperature, held_out, got, replies.get("off"))
                for mode, got in replies.items()
            )
    if options.aligner:
        print(table(rows))
    else:
        publish("demo_accuracy", rows, "bench.demo_accuracy")


def summary(
    mode: str,
    temperature: float,
    held_out: list[Problem],
    replies: list[Reply],
    alone: list[Reply] | None,
) -> Row:
    pairs = list(zip(held_out, replies, strict=True))
    counts = [sentence_counts(problem, mode, reply) for problem, reply in pairs]
    right, wrong = (sum(column) for column in zip(*counts, strict=True))
    row: Row = {
        "mode": mode,
        "temperature": temperature,
        "n": len(pairs),
        "accuracy": mean(grade(problem.answer, reply.text) for problem, reply in pairs),
        "corrections_per_reply": mean(reply.cost.get("corrections", 0) for reply in replies),
        "over_correction": None if mode == "off" else wrong / max(1, right),
        "right_sentences": None if mode == "off" else right,
        "made_wrong": None if mode == "off" else wrong,
        "seconds_per_reply": mean(reply.total for reply in replies),
        "seconds_median": median(reply.total for reply in replies),
        "first_text_seconds": median(reply.first_text for reply in replies),
    }
    if alone is not None:
        total = sum(reply.total for reply in replies)
        row["time_over_upstream_alone"] = total / sum(reply.total for reply in alone)
    return row


if __name__ == "__main__":
    main()
