"""What the strength dial does: sentences fixed and spoiled on the demo world, by its setting.

Every step of held-out problems is reviewed twice, after the right steps before it: as it should be,
and corrupted (a forgotten carry, a misread digit, a wrong operand or sign). The same sentences at
every setting; the in-process aligner, in batches.
"""

import argparse
import asyncio
import random
from pathlib import Path

from tqdm import tqdm

from bench.report import Row, publish
from bench.stack import MODELS
from stream_aligner_proxy.aligners.transformers_engine import TransformersAligner
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import NEUTRAL, Review, Turn
from training.world.judge import judge_step
from training.world.problems import Problem, problems
from training.world.slips import corrupt

STRENGTHS = (0.0, 0.001, 0.01, 0.05, 0.2, NEUTRAL)
TOGETHER = 32


def reviews(asked: list[Problem], seed: int) -> list[tuple[Problem, Review]]:
    rng = random.Random(seed)
    found = []
    for problem in asked:
        talk = (Turn("user", problem.question),)
        values = problem.values
        for at, step in enumerate(problem.steps):
            before = " ".join(problem.sentences[:at])
            for text in (step.sentence(values[:at]), corrupt(step, values[:at], rng)):
                found.append((problem, Review(talk, before, text)))
    return found


async def measure(
    aligner: TransformersAligner, asked: list[tuple[Problem, Review]], strength: float
) -> Row:
    """How the sentences come out at one setting."""

    async def outcome(problem: Problem, review: Review) -> tuple[bool, bool, bool]:
        """Whether it was right before, whether it was changed, whether it is right now."""
        dialled = Review(
            review.conversation, review.committed, review.sentence, review.scope, strength
        )
        before = judge_step(problem, review.committed, review.sentence).right
        try:
            verdict = await aligner.review(dialled)
        except ReviewError:
            return before, False, False
        if verdict.replacement is None:
            return before, False, before
        return before, True, judge_step(problem, review.committed, verdict.replacement).right

    outcomes: list[tuple[bool, bool, bool]] = []
    for start in tqdm(range(0, len(asked), TOGETHER), desc=f"strength {strength}", disable=None):
        some = asked[start : start + TOGETHER]
        outcomes += await asyncio.gather(*(outcome(*one) for one in some))
    right = [one for one in outcomes if one[0]]
    wrong = [one for one in outcomes if not one[0]]
    return {
        "strength": strength,
        "right_sentences": len(right),
        "changed": sum(changed for _, changed, _ in right) / len(right),
        "made_wrong": sum(not after for _, _, after in right) / len(right),
        "wrong_sentences": len(wrong),
        "touched": sum(changed for _, changed, _ in wrong) / len(wrong),
        "made_right": sum(after for _, _, after in wrong) / len(wrong),
    }


async def run(path: Path, asked: list[tuple[Problem, Review]]) -> list[Row]:
    aligner = TransformersAligner(path, max_batch=TOGETHER)
    await aligner.start()
    try:
        return [await measure(aligner, asked, strength) for strength in STRENGTHS]
    finally:
        await aligner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="held-out problems (default 100)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--aligner", type=Path, default=MODELS / "aligner")
    options = parser.parse_args()
    asked = reviews(problems(options.seed, options.count, "test"), options.seed)
    publish("strength", asyncio.run(run(options.aligner, asked)), "bench.strength")


if __name__ == "__main__":
    main()
