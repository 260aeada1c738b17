"""A review made to fit a window, and an aligner's answer read: the same for every engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.core.errors import Unreviewable
from stream_aligner_proxy.core.prompts import END, KEEP, PromptProfile, Revision, fit
from stream_aligner_proxy.core.records import Review, Turn, Verdict


@dataclass(frozen=True, slots=True)
class Framed:
    """Ids of a prompt and of the draft, and how many tokens the revision may have; end tokens
    included."""

    prompt: tuple[int, ...]
    draft: tuple[int, ...]
    room: int


def sample(profile: PromptProfile) -> Review:
    """One small review: it must fit whatever the window is."""
    return Review((Turn("user", "Hello."),), "", "Hello there.", next(iter(profile.scopes)))


def frame(encoder: Encoder, review: Review, window: int, max_new: Callable[[int], int]) -> Framed:
    """Fit a review into `window` tokens, prompt and revision together, and encode it.

    `max_new` gives the most tokens of a revision for a draft of so many. Raises `ReviewError` where
    the sentence does not fit.
    """
    draft = encoder.draft(review)
    bare = Review((), "", review.sentence, review.scope)
    free = window - encoder.overhead - sum(map(encoder.count, encoder.profile.render(bare)))
    # The revision may take all it is allowed, but a long sentence leaves half of what is left to
    # the context, unless the sentence itself needs more.
    room = min(max_new(len(draft)), max(free // 2, len(draft)))
    budget = window - encoder.overhead - room
    if budget <= 0:
        raise Unreviewable("the sentence does not fit the aligner's window")
    prompt = encoder.prompt(fit(review, encoder.profile, encoder.count, budget))
    if len(prompt) + room > window:
        raise Unreviewable("the review does not fit the aligner's window")
    return Framed(prompt, draft, room)


def foreseen(
    encoder: Encoder, review: Review, window: int, max_new: Callable[[int], int]
) -> tuple[int, ...]:
    """The prompt of a review whose sentence still grows, as far as it can be known."""
    known = frame(encoder, review, window, max_new).prompt
    grown = replace(review, sentence=f"{review.sentence} -")
    # Where the two part, the sentence's end and all that follows begins.
    return known[: shared(known, frame(encoder, grown, window, max_new).prompt)]


def shared(some: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(some, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(some), len(other)))


def judge(profile: PromptProfile, revision: Revision, review: Review) -> Verdict:
    """The verdict, without token counts. Raises `ReviewError` for what nobody can trust."""
    for control in revision.controls:
        if control not in (KEEP, END):
            raise Unreviewable(f"the aligner wrote the control token {control}")
    if "\ufffd" in revision.text and "\ufffd" not in review.sentence:
        raise Unreviewable("the aligner's revision is not valid text")
    return profile.read(revision, review)
