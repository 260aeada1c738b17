"""Measure the two demo models in the loop, offline, on held-out problems and requests.

    python -m training.evaluate --upstream DIR --aligner DIR --count 500

Prints, per temperature and mode: final-answer accuracy, corrections per reply, over-correction
(right sentences made wrong, of all reviewed), precision and recall of keep, and how often a fix is
exactly right; then what a corrected opening does to the sentences after it, and how many sentences
from outside the world are left alone.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stream_aligner_proxy.core.prompts import PromptProfile
from stream_aligner_proxy.core.records import Review, Turn
from training.generate import Writer
from training.loops import (
    PROFILE,
    Episode,
    LoopMode,
    ModelReviewer,
    Seen,
    run_stream,
    run_whole,
)
from training.world.babble import babble
from training.world.judge import grade, judge_reply, judge_step, sentences_of
from training.world.problems import Problem, problems
from training.world.split import stream
from training.world.tone import Request, is_rude, requests


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """One line of the table for word problems. Shares are of all sentences reviewed, or NaN."""

    mode: str
    temperature: float
    n: int
    accuracy: float
    corrections_per_reply: float
    over_correction: float
    keep_precision: float
    keep_recall: float
    fix_rate: float
    step_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ToneRow:
    """One line of the table for notes, over replies whose first sentence was corrected."""

    mode: str
    temperature: float
    n: int
    opened_rudely: float
    later_good_alone: float
    later_good_delivered: float
    over_correction: float


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _sentence_scores(pairs: list[tuple[Problem, Seen]]) -> dict[str, float]:
    kept_right = kept_wrong = fixed = spoiled = wrong = changed_right = 0
    for problem, seen in pairs:
        judged = judge_step(problem, seen.committed, seen.sentence)
        new = seen.verdict.replacement
        after = judged.right if new is None else judge_step(problem, seen.committed, new).right
        if judged.right:
            kept_right += new is None
            changed_right += new is not None
            spoiled += not after
        else:
            wrong += 1
            kept_wrong += new is None
            fixed += after
    return {
        "over_correction": ratio(spoiled, len(pairs)),
        "keep_precision": ratio(kept_right, kept_right + kept_wrong),
        "keep_recall": ratio(kept_right, kept_right + changed_right),
        "fix_rate": ratio(fixed, wrong),
    }


def measure_problems(
    upstream: Writer,
    aligner: Writer | None,
    asked: list[Problem],
    mode: LoopMode,
    temperature: float,
    *,
    profile: PromptProfile = PROFILE,
) -> tuple[ProblemRow, list[Episode]]:
    """Run one mode over the problems; `profile` is that of the aligner."""
    episodes = [Episode(({"role": "user", "content": p.question},), p) for p in asked]
    started = time.monotonic()
    reviewer = None if aligner is None or mode == "off" else ModelReviewer(aligner, profile)
    if mode in ("off", "whole") or reviewer is None:
        run_whole(upstream, reviewer, episodes, temperature=temperature)
    else:
        feed_back = mode == "stream"
        run_stream(upstream, reviewer, episodes, temperature=temperature, feed_back=feed_back)
    seconds = time.monotonic() - started
    right = [grade(p.answer, e.committed) for p, e in zip(asked, episodes, strict=True)]
    steps = [
        one.right
        for p, e in zip(asked, episodes, strict=True)
        for one in judge_reply(p, e.committed)
    ]
    scores = dict.fromkeys(
        ("over_correction", "keep_precision", "keep_recall", "fix_rate"), float("nan")
    )
    if mode in ("stream", "rewrite"):
        pairs = [(p, s) for p, e in zip(asked, episodes, strict=True) for s in e.seen]
        scores = _sentence_scores(pairs)
    elif mode == "whole":
        # A whole answer is one unit here: over-correction is a right answer made wrong.
        before = [grade(p.answer, e.seen[0].sentence) for p, e in zip(asked, episodes, strict=True)]
        spoiled = sum(b and not a for b, a in zip(before, right, strict=True))
        scores["over_correction"] = ratio(spoiled, len(asked))
    row = ProblemRow(
        mode,
        temperature,
        len(asked),
        ratio(sum(right), len(right)),
        ratio(sum(e.corrections for e in episodes), len(episodes)),
        step_accuracy=ratio(sum(steps), len(steps)),
        seconds=seconds,
        **scores,
    )
    return row, episodes


def measure_tone(
    upstream: Writer,
    aligner: Writer,
    asked: list[Request],
    mode: LoopMode,
    temperature: float,
) -> ToneRow:
    """Measure how the sentences after a corrected opening turn out."""
    episodes = [Episode(({"role": "user", "content": r.question},), r) for r in asked]
    reviewer = ModelReviewer(aligner)
    feed_back = mode == "stream"
    run_stream(upstream, reviewer, episodes, temperature=temperature, feed_back=feed_back)
    opened = [e for e in episodes if is_rude(e.seen[0].sentence)]
    corrected = [e for e in opened if not e.seen[0].verdict.kept]
    later = [s for e in corrected for s in e.seen[1:]]
    good = sum(not is_rude(s.sentence) for s in later)
    delivered = [s for e in corrected for s in sentences_of(e.committed)[1:]]
    every = [s for e in episodes for s in e.seen]
    changed = sum(not is_rude(s.sentence) and not s.verdict.kept for s in every)
    return ToneRow(
        mode,
        temperature,
        len(episodes),
        ratio(len(opened), len(episodes)),
        ratio(good, len(later)),
        ratio(sum(not is_rude(s) for s in delivered), len(delivered)),
        ratio(changed, len(every)),
    )


def measure_foreign(aligner: Writer, count: int, seed: int) -> float:
    """The share of sentences from outside the world that are kept, of `count` made-up ones."""
    rng = stream("test", "foreign", seed)
    reviewer = ModelReviewer(aligner)
    asked = []
    for _ in range(count):
        question, before = babble(rng), " ".join(babble(rng) for _ in range(rng.randint(0, 3)))
        asked.append(Review((Turn("user", question),), before, babble(rng)))
    # The reviewer reads the reviews alone; no episode stands behind them.
    nobody = Episode((), requests(seed, 1, "test")[0])
    verdicts = reviewer([(nobody, review) for review in asked])
    return ratio(sum(verdict.kept for verdict in verdicts), count)


def _show(rows: list[ProblemRow] | list[ToneRow]) -> None:
    names = list(asdict(rows[0]))
    print(" ".join(f"{name:>{max(9, len(name))}}" for name in names))
    for row in rows:
        cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in asdict(row).values())
        widths = (max(9, len(name)) for name in names)
        print(" ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)), flush=True)


def _misses(asked: list[Problem], episodes: list[Episode], show: int) -> None:
    for problem, episode in zip(asked, episodes, strict=True):
        if show and not grade(problem.answer, episode.committed):
            show -= 1
            print(f"\nQ {problem.question}\nD {episode.committed}\nG {problem.reply}")
            for one in episode.seen:
                print(f"   {one.sentence!r} -> {one.verdict.replacement!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--upstream", type=Path, required=True, help="directory of the model")
    parser.add_argument("--aligner", type=Path, help="directory of the model")
    parser.add_argument("--count", type=int, default=500, help="problems, and half as many notes")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--modes", nargs="+", default=["off", "whole", "stream"])
    parser.add_argument("--show", type=int, default=0, help="print this many wrong stream replies")
    parser.add_argument("--no-tone", action="store_true", help="leave the notes out")
    parser.add_argument("--exact", action="store_true", help="fp32 instead of bf16 (slower)")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    upstream = Writer.load(args.upstream, seed=args.seed, exact=args.exact)
    aligner = Writer.load(args.aligner, exact=args.exact) if args.aligner else None
    notes = requests(args.seed, args.count // 2, args.split)
    asked = problems(args.seed, args.count, args.split)
    modes: list[LoopMode] = args.modes if aligner else ["off"]
    rows: list[ProblemRow] = []
    for temperature in args.temperatures:
        for mode in modes:
            row, episodes = measure_problems(upstream, aligner, asked, mode, temperature)
            rows.append(row)
            if mode == "stream":
                _misses(asked, episodes, args.show)
    _show(rows)
    tones: list[ToneRow] = []
    if aligner and not args.no_tone:
        for temperature in args.temperatures:
            tones += [
                measure_tone(upstream, aligner, notes, "stream", temperature),
                measure_tone(upstream, aligner, notes, "rewrite", temperature),
            ]
        _show(tones)
        foreign = measure_foreign(aligner, args.count, args.seed)
        print(f"sentences from outside the world that were kept: {foreign:.4f}")
    if args.json:
        data = [asdict(row) for row in rows] + [asdict(row) for row in tones]
        args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
