"""What reading ahead gains at a server that runs the aligner: the first review of a talk, and later
ones, with and without a one-token request for their prefix before them.

Needs a server and its address: `vllm serve stream_aligner_proxy/demo/models/aligner`.
Each review is dialled to keep, so that it is its reading that is timed. Talks are random words, new
each time; with and without take turns.
"""

import argparse
import asyncio
import random
import time
from statistics import median

from bench.report import Row, publish
from bench.stack import MODELS
from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.core.records import Review, Turn

WORDS = ("apples", "cards", "people", "she", "buys", "sells", "river", "baker", "old", "more", "so")
SENTENCE = "So 48 + 32 = 80 cards."


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


async def timed(aligner: RemoteAligner, review: Review, ahead: bool) -> float:
    """Milliseconds of the review alone."""
    if ahead:
        await aligner._read_ahead(Review(review.conversation, review.committed, ""))
    begun = time.perf_counter()
    await aligner.review(review)
    return 1000 * (time.perf_counter() - begun)


async def run(url: str, count: int, length: int) -> list[Row]:
    aligner = RemoteAligner(MODELS / "aligner", urls=[url])
    await aligner.start()
    rng = random.Random(1)
    took: dict[tuple[str, bool], list[float]] = {}
    try:
        for number in range(2 * count):
            ahead = bool(number % 2)
            talk = (Turn("user", words(rng, length)),)
            committed = ""
            for which in ("first", "later", "later"):
                review = Review(talk, committed, SENTENCE, strength=0.0)
                took.setdefault((which, ahead), []).append(await timed(aligner, review, ahead))
                committed += f"{words(rng, 20)}. "
    finally:
        await aligner.close()
    return [
        {"review": which, "read_ahead": ahead, "reviews": len(some), "median_ms": median(some)}
        for (which, ahead), some in sorted(took.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the server's address, with /v1")
    parser.add_argument("--count", type=int, default=30, help="talks each way (default 30)")
    parser.add_argument("--words", type=int, default=330, help="of a talk (default 330)")
    options = parser.parse_args()
    rows = asyncio.run(run(options.url, options.count, options.words))
    publish("remote_prefill", rows, "bench.remote_prefill")


if __name__ == "__main__":
    main()
