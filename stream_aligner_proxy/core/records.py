"""The nouns every layer shares: frozen, without behaviour that needs I/O or a clock.

Text is always `str`; token counts are in the tokens of whoever reports them (the upstream's for
`Usage` and `Chunk`, the aligner's for `Verdict`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class Mode(StrEnum):
    """How a reply is treated."""

    STREAM = "stream"  # review each sentence, continue after a rewrite
    WHOLE = "whole"  # review the finished answer once
    SHADOW = "shadow"  # review and record, deliver the original
    OFF = "off"  # plain pass-through


Scope = Literal["sentence", "whole"]
# How an upstream is made to continue a text, best first: as it writes on any prompt (plain text
# completions only), from the very tokens, from a partial message of its own, by being told to; or
# not at all.
Way = Literal["prompt", "ids", "prefill", "instruct", "rewrite-only"]
# What an upstream was found to do with a partial message.
Found = Literal["continues", "repeats", "restarts", "rejects", "unknown"]

# Fields of a delta that hold thoughts: they come before the text, and a continuation has none.
THINKING = frozenset(
    ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
)
NEUTRAL = 0.5  # the strength at which an aligner decides as it was trained


@dataclass(frozen=True, slots=True)
class Continuation:
    """How an upstream would continue its reply to a request. `sure`: it is known to do so; where
    it is not, the old branch is kept until the new one has shown that it writes on. `found`: what
    its model was seen to do with a partial message."""

    way: Way
    sure: bool = True
    found: Found = "unknown"

    @property
    def possible(self) -> bool:
        return self.way != "rewrite-only"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation as the aligner sees it: text parts only."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Review:
    """What the aligner is asked.

    `sentence` has no leading or trailing whitespace (rule 9). `committed` is everything that was
    committed before it, or will have been if the sentences still waiting are kept. `strength` is
    the dial between leaving all alone (0) and changing what can be changed (1): the odds of
    keeping the sentence are multiplied by (1 - strength) / strength. `headers` go along where the
    aligner is a server of its own: the trace that the review belongs to.
    """

    conversation: tuple[Turn, ...]
    committed: str
    sentence: str
    scope: Scope = "sentence"
    strength: float = NEUTRAL
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The aligner's answer. `replacement` is None for keep; "" deletes the sentence."""

    replacement: str | None = None
    end: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def kept(self) -> bool:
        return self.replacement is None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the upstream reported them; `details` holds its other usage fields."""

    prompt_tokens: int
    completion_tokens: int
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One decoded event of an upstream's stream.

    `part` is a delta that is not prose (reasoning, tool calls, a refusal): passed through in
    order. `usage` may come with any chunk; where servers repeat it, the counts are cumulative.
    `logprobs`: tokens of text that comes next, as OpenAI tells them. `about`: what the upstream
    says of the reply itself, such as its service tier.
    """

    text: str = ""
    part: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    tokens: int = 1
    logprobs: Sequence[Mapping[str, Any]] = ()
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A validated chat request: the body as the upstream shall see it, and what the loop needs.

    `body` never holds the extension field, `stream` or `stream_options`; the upstream client adds
    its own. `stop_included`: the stop string that ends the reply is part of it. `headers` are those
    of the client's that go on to the upstream. `began`, in a continuation: how the upstream itself
    began the reply, before any correction.
    """

    model: str
    body: Mapping[str, Any]
    conversation: tuple[Turn, ...]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_included: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    began: str = ""


Outcome = Literal["keep", "replace", "passed", "unreviewed"]
RestartOn = Literal["any", "material"]


@dataclass(frozen=True, slots=True)
class Committed:
    """One unit of committed text.

    `text` is what the client gets, whitespace included; joined over a reply it is the reply.
    `outcome`: `keep` and `replace` are verdicts; `passed` was not for review (code, whitespace,
    what comes after `max_reviews`); `unreviewed` slipped through because the operator chose to fail
    open. `start`: how many characters the branch wrote before `original`.
    """

    index: int
    original: str
    text: str
    outcome: Outcome
    branch: int
    end: bool = False
    review: int | None = None
    error: str | None = None
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a reply cost beside what was delivered (rule 11).

    `reviews_in_vain`, of the `reviews`, were dropped, or judged what a rewrite then threw away.
    `skipped`: sentences delivered unreviewed because `max_reviews` were made. `resumes`: branches
    opened because one broke. `refused_continuations`: branches that would not continue.
    """

    branches: int = 0
    reviews: int = 0
    reviews_in_vain: int = 0
    corrections: int = 0
    unreviewed: int = 0
    skipped: int = 0
    resumes: int = 0
    refused_continuations: int = 0
    resent_prefix_tokens: int = 0
    discarded_tokens: int = 0
    aligner_prompt_tokens: int = 0
    aligner_completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """How one request is aligned. Sentences are units of the splitter.

    `lookahead`: sentences that may wait for a verdict while the upstream keeps writing.
    `review_ahead`: reviews in flight at once for one reply. `adaptive`: these two are the most;
    how far they are used follows the verdicts (see `window`). `restart_on`: continue the upstream
    after any rewrite, or after a `material` one, whose edit distance is at least `material_edit` of
    the longer text. `max_continuations`: branches opened after rewrites; past it the running
    branch is kept and only rewritten (the paper used sixteen rounds). `max_reviews`: only so many
    sentences, the first of the reply, are reviewed (the paper's number of corrected sentences);
    None for all. `max_resumes`: how often a reply whose branch broke is taken up again from what is
    committed. `merge_below`: shorter sentences are reviewed together with the next.
    `early_review`: ask about a sentence as soon as it seems complete, before what follows has made
    sure of it. `fail_open`: deliver a sentence whose review failed, marked as unreviewed.
    `strength`: see `Review`.
    """

    mode: Mode = Mode.STREAM
    strength: float = NEUTRAL
    lookahead: int = 32
    review_ahead: int = 16
    adaptive: bool = True
    restart_on: RestartOn = "any"
    material_edit: float = 0.1
    max_continuations: int = 16
    max_reviews: int | None = None
    max_resumes: int = 2
    merge_below: int = 0
    early_review: bool = True
    fail_open: bool = False
    review_code: bool = False
    max_sentence_chars: int = 2000
    max_whole_chars: int = 200_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One thing for the client, in order: text, or a part that is not prose.

    `unit` tells where the text comes from. The beginning of a sentence may come before its verdict,
    without `unit`; the unit then comes with the rest, and its own `text` is all of it. In shadow
    mode it comes after its text, with an empty `text`. Times are seconds; None where there was no
    review. `logprobs`: see `Chunk`; those of text that the upstream wrote as it is, once all of it
    is delivered.
    """

    text: str = ""
    part: Mapping[str, Any] | None = None
    unit: Committed | None = None
    review_seconds: float | None = None
    waited_seconds: float | None = None
    logprobs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a reply ended. `usage` is None where the upstream reported none.

    `added_seconds`: how much later it ended because it was aligned, slow clients apart. That is the
    time from the arrival of a rewritten sentence to the first text that continues its new text;
    from the upstream's own end (or, where the proxy ended the reply, from the arrival of its last
    sentence) to the last verdict; and in which the upstream was not read because as many sentences
    waited as may. `first_text_seconds`: from the beginning to the first text; None without any.
    `about`: see `Chunk`, of the branch that told it last.
    """

    finish_reason: str
    usage: Usage | None
    cost: Cost
    mode: Mode
    continuation: str
    added_seconds: float = 0.0
    first_text_seconds: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
