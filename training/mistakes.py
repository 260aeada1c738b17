"""Collect the upstream's own sentences, right and wrong, on train problems.

    python -m training.mistakes --upstream DIR --count 6000 --out mistakes.jsonl

The upstream runs in the loop with the world itself as its aligner, so that every sentence stands
after a committed text that is right, as it will in use. Never reads the test split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from stream_aligner_proxy.core.records import Review, Verdict
from training.corrections import Reviewed, Row, judged
from training.generate import Writer
from training.loops import Episode, run_stream, run_whole
from training.world.chat import sample_conversation
from training.world.judge import judge_reply, sentences_of
from training.world.problems import Problem
from training.world.split import stream
from training.world.tone import judge_tone

TEMPERATURES = (0.0, 0.7, 1.0)


def oracle(asked: Sequence[tuple[Episode, Review]]) -> list[Verdict]:
    """Review as the world's own judge would."""
    verdicts = []
    for episode, review in asked:
        at = len(sentences_of(review.committed))
        row = judged(episode.task, review.committed, review.sentence, at)
        verdicts.append(Verdict() if row is None else Verdict(row.correction, row.end))
    return verdicts


def reviewed(episode: Episode) -> Reviewed | None:
    """Turn a finished episode into training rows."""
    sentences = tuple(sentences_of(episode.committed))
    rows = []
    for one in episode.seen:
        at = len(sentences_of(one.committed))
        # A sentence the world cannot judge was let through: no row, and nothing after it.
        row = judged(episode.task, one.committed, one.sentence, at)
        if row is None or at > len(sentences):
            break
        rows.append(row)
    return Reviewed(episode.messages, sentences, tuple(rows)) if rows else None


def whole_reply(episode: Episode) -> Reviewed | None:
    """Turn an uncorrected reply into a row of whole-answer review."""
    reply = episode.committed.strip()
    if isinstance(episode.task, Problem):
        right = all(one.right for one in judge_reply(episode.task, reply))
        better = reply if right else episode.task.reply
    else:
        judgements = [judge_tone(part) for part in sentences_of(reply)]
        if any(one is None for one in judgements):
            return None
        better = " ".join(one.correction for one in judgements if one)
    row = (reply, None if better == reply else better)
    return Reviewed(episode.messages, (), (), (row,))


def collect(upstream: Writer, seed: int, count: int, notes: float) -> list[Reviewed]:
    """Run `count` train conversations through the loop at each temperature in turn."""
    rng = stream("train", "mistakes", seed)
    found: list[Reviewed | None] = []
    each = min(200, count)
    for at in tqdm(range(0, count, each), desc="mistakes", unit="batch"):
        talks = [sample_conversation(rng, "train", notes=notes) for _ in range(each)]
        temperature = TEMPERATURES[at // each % len(TEMPERATURES)]
        episodes = [Episode(t.messages, t.task) for t in talks if t.task is not None]
        if at // each % 5 == 4:
            run_whole(upstream, None, episodes, temperature=temperature)
            found += [whole_reply(episode) for episode in episodes]
        else:
            run_stream(upstream, oracle, episodes, temperature=temperature)
            found += [reviewed(episode) for episode in episodes]
    return [one for one in found if one is not None]


def read(path: Path) -> list[Reviewed]:
    """Read what `main` wrote."""
    rows = []
    for line in path.read_text().splitlines():
        data: dict[str, Any] = json.loads(line)
        rows.append(
            Reviewed(
                tuple(data["messages"]),
                tuple(data["sentences"]),
                tuple(Row(**row) for row in data["rows"]),
                tuple((reply, better) for reply, better in data["whole"]),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--upstream", type=Path, required=True, help="directory of the model")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file to write")
    parser.add_argument("--count", type=int, default=6000, help="conversations")
    parser.add_argument("--notes", type=float, default=0.15, help="share of requests for notes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = collect(Writer.load(args.upstream, seed=args.seed), args.seed, args.count, args.notes)
    temp = args.out.with_suffix(".tmp")
    temp.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found))
    temp.rename(args.out)
    rows = [row for one in found for row in one.rows]
    wrong = sum(row.correction is not None for row in rows)
    print(f"{len(found)} conversations, {len(rows)} sentences, {wrong} of them wrong: {args.out}")


if __name__ == "__main__":
    main()
