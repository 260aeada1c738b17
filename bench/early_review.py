"""How often a sentence that seems complete is complete: what early reviews waste.

Recorded replies are cut into pieces of a token's size. A review is started where the splitter's
rest seems over; it counts as used if the sentence then ends exactly there.
"""

import argparse
import re
import sys

from bench.line_breaks import strings, values
from bench.report import Row, publish
from bench.splitter import data_folder
from stream_aligner_proxy.core.sentences import SentenceSplitter

FOLDERS = ("vicuna-blog-eval", "self-instruct-eval", "mt-bench")
SHORTEST = 80  # shorter strings are names and labels
_PIECE = re.compile(r"\s?\w{1,6}|\s?[^\w\s]|\s")


def counts(reply: str) -> tuple[int, int, int]:
    """Sentences, reviews started early, and of these used."""
    splitter = SentenceSplitter()
    early: str | None = None
    found = started = used = 0
    for piece in [*_PIECE.findall(reply), None]:
        sentences = splitter.flush() if piece is None else splitter.feed(piece)
        for sentence in sentences:
            found += 1
            used += sentence.text.strip() == early
            early = None
        if early is not None and splitter.rest.strip() != early:
            early = None
        if early is None and splitter.seems_over:
            early = splitter.rest.strip()
            started += 1
    return found, started, used


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    data = data_folder()
    if data is None:
        sys.exit("no data: set STREAM_ALIGNER_DATA to the folder that holds the data sets")
    rows: list[Row] = []
    for name in FOLDERS:
        replies = [
            reply
            for path in sorted((data / name).glob("*.json*"))
            for value in values(path)
            for reply in strings(value)
            if len(reply) >= SHORTEST
        ]
        found, started, used = (sum(n) for n in zip(*map(counts, replies), strict=True))
        rows.append(
            {
                "replies": name,
                "n": len(replies),
                "sentences": found,
                "reviewed_early": started / found,
                "of_these_used": used / started,
            }
        )
    publish("early_review", rows, "bench.early_review")


if __name__ == "__main__":
    main()
