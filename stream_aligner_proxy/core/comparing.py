"""A new aligner compared with the one at work: over the same sentences, or over shares of the
conversations. Pure."""

from dataclasses import dataclass
from typing import Literal, Protocol

from stream_aligner_proxy.core.edits import edit_distance
from stream_aligner_proxy.core.records import Verdict

Side = Literal["current", "candidate"]
Agreement = Literal[
    "both_keep",
    "same_text",
    "different_text",
    "only_current",
    "only_candidate",
    "current_failed",
    "candidate_failed",
    "both_failed",
]
Ends = Literal["both", "current", "candidate"]
# The candidate was not asked: it has enough to do, it is down, or it cannot work in the reply's
# mode or strength.
Skipped = Literal["busy", "unavailable", "unable"]

# An edit distance of longer texts would hold the event loop up.
MAX_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Pair:
    """The configured names of the two."""

    current: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one review: `text` is what the sentence becomes, None where the review failed.
    Whitespace around it is no change, as in the loop."""

    seconds: float
    text: str | None = None
    changed: bool = False
    end: bool = False


def judged(sentence: str, verdict: Verdict | None, seconds: float) -> Judged:
    """`verdict` is None where the review failed."""
    if verdict is None:
        return Judged(seconds)
    text = sentence if verdict.replacement is None else verdict.replacement.strip()
    return Judged(seconds, text, text != sentence, verdict.end)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reviews of one sentence. `similarity` is that of the two texts, from 0 (nothing in
    common) to 1; None where both keep, one failed, or a text is too long. `ends`: who of them ends
    the reply here, if anybody."""

    current: Judged
    candidate: Judged
    agreement: Agreement
    similarity: float | None = None
    ends: Ends | None = None


def compare(current: Judged, candidate: Judged) -> Comparison:
    """Of the same sentence."""
    similarity = None
    if candidate.changed or current.changed:
        similarity = _similarity(current.text, candidate.text)
    return Comparison(
        current, candidate, _agreement(current, candidate), similarity, _ends(current, candidate)
    )


def _agreement(current: Judged, candidate: Judged) -> Agreement:
    match current.text is None, candidate.text is None:
        case True, True:
            return "both_failed"
        case True, False:
            return "current_failed"
        case False, True:
            return "candidate_failed"
    match current.changed, candidate.changed:
        case True, True:
            return "same_text" if current.text == candidate.text else "different_text"
        case True, False:
            return "only_current"
        case False, True:
            return "only_candidate"
    return "both_keep"


def _ends(current: Judged, candidate: Judged) -> Ends | None:
    if current.end and candidate.end:
        return "both"
    if current.end:
        return "current"
    return "candidate" if candidate.end else None


def _similarity(a: str | None, b: str | None) -> float | None:
    if a is None or b is None:
        return None
    longest = max(len(a), len(b))
    if longest > MAX_CHARS:
        return None
    return 1.0 - edit_distance(a, b, longest) / longest if longest else 1.0


class ComparisonWatcher(Protocol):
    """Told of both aligners. Must neither raise nor wait."""

    def judged(self, pair: Pair, side: Side, review: Judged) -> None:
        """One of them reviewed a sentence of a reply that it had to itself."""
        ...

    def compared(self, pair: Pair, comparison: Comparison) -> None:
        """Both reviewed the same sentence."""
        ...

    def skipped(self, pair: Pair, reason: Skipped) -> None:
        """The candidate was to be asked, and was not."""
        ...


class Unwatched:
    """A `ComparisonWatcher` that nobody asks."""

    def judged(self, pair: Pair, side: Side, review: Judged) -> None: ...

    def compared(self, pair: Pair, comparison: Comparison) -> None: ...

    def skipped(self, pair: Pair, reason: Skipped) -> None: ...
