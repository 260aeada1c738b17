"""What observing a reply costs: `python -m bench.observing`.

The calls that a session makes for a reply of `SENTENCES` sentences, every eighth one rewritten, are
made to nobody, to the metrics, to the record for the log and `/debug`, and to all as the app does;
then with the values in files, as several workers keep them. Microseconds of CPU: the rest of the
proxy runs in the same thread.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Finished,
    Mode,
    Review,
    Usage,
    Verdict,
)
from stream_aligner_proxy.core.watching import Observer, Opening
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.observers.replies import Replies

SENTENCES = 40
REPLIES = 200
ROUNDS = 5
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

SENTENCE = "The train leaves at a quarter past nine and is there before the shops have closed."
OPENING = Opening(Mode.STREAM, ChatRequest("m", {}, ()), aligner="default", streamed=True)
REVIEW = Review((), "", SENTENCE)
KEPT = Committed(0, SENTENCE, SENTENCE, "keep", 0, review=0)
REWRITTEN = Committed(0, SENTENCE, SENTENCE.replace("nine", "ten"), "replace", 0, review=0)
COST = Cost(branches=6, reviews=SENTENCES, corrections=5, discarded_tokens=90)
FINISHED = Finished("stop", Usage(50, 800), COST, Mode.STREAM, "ids")


def reply(observer: Observer, sentences: int) -> None:
    watch = observer.opened(OPENING)
    watch.branch_opened(0, 0)
    watch.context(0)
    watch.branch_answered(0, "main")
    for number in range(sentences):
        watch.review_started(number, REVIEW)
        watch.review_context(number)
        watch.reviewed(number, Verdict(), 0.02)
        unit = REWRITTEN if number % 8 == 7 else KEPT
        watch.committed(unit, 0.02)
        watch.delivered(unit, 0.03)
        if not number:
            watch.first_text(0.3)
    watch.branch_closed(0)
    watch.closed("finished", 9.0, COST, FINISHED)


def microseconds(observer: Observer, sentences: int) -> float:
    """Of one reply; the least of several rounds."""
    least = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(REPLIES):
            reply(observer, sentences)
        least = min(least, time.process_time() - begun)
    return least / REPLIES * 1e6


def measure(observers: Callable[[], Sequence[Observer]]) -> tuple[float, float]:
    """Microseconds for each sentence, and for a reply without any."""
    guarded = Guarded(observers(), lambda: None)
    none, many = microseconds(guarded, 0), microseconds(guarded, SENTENCES)
    return (many - none) / SENTENCES, none


def in_files() -> tuple[float, float]:
    """In a process of its own: the library decides at its import where values are kept."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "bench.observing", "--alone"],
            env={**os.environ, _FOLDER: folder},
            capture_output=True,
            text=True,
            check=True,
        )
    sentence, whole = map(float, done.stdout.split())
    return sentence, whole


def main() -> None:
    if "--alone" in sys.argv:
        print(*measure(lambda: (Metrics(), Replies())))
        return
    rows = {
        "nobody (the calls alone)": measure(tuple),
        "metrics": measure(lambda: (Metrics(),)),
        "record for log and /debug": measure(lambda: (Replies(),)),
        "both, as the app has them": measure(lambda: (Metrics(), Replies())),
        "both, several workers": in_files(),
    }
    print(f"{'observers':28} {'µs/sentence':>12} {'µs/reply':>9}")
    for name, (sentence, whole) in rows.items():
        print(f"{name:28} {sentence:12.1f} {whole:9.1f}")


if __name__ == "__main__":
    main()
