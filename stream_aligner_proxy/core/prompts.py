"""Prompt profiles: how a review is put to an aligner, and how its answer is read.

A profile renders a `Review` into segments. Only *control* segments may hold special tokens; *data*
segments are tokenised with special tokens switched off, and where a format marks its fields with
plain text those marks are defused inside data, reversibly. So no text of a user or an upstream can
become a delimiter or a special token (rule 8).

Profiles:
- `compact`: ours. Special tokens mark the fields, one token says "keep", one says "end".
- `stream-aligner`, `stream-aligner-plain`: as published (arXiv 2501.05336), with and without the
  Gemma turn around it.
- `aligner`: as published (arXiv 2402.02416); judges whole answers only.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from stream_aligner_proxy.core.errors import Unreviewable
from stream_aligner_proxy.core.records import Review, Scope, Turn, Verdict
from stream_aligner_proxy.core.sentences import split

KEEP = "<|keep|>"
END = "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
COMMITTED = "<|committed|>"
SENTENCE = "<|sentence|>"
ANSWER = "<|answer|>"
REVISION = "<|revision|>"
COMPACT_TOKENS = (*ROLES.values(), COMMITTED, SENTENCE, ANSWER, REVISION, KEEP, END)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of prompt. `control` says that special tokens in `text` are meant as such."""

    text: str
    control: bool = False


CountTokens = Callable[[Segment], int]

# Text that has more characters for each of its tokens, over a whole window, is rare enough.
_CLIP_CHARS_PER_TOKEN = 6


@dataclass(frozen=True, slots=True)
class Revision:
    """What the aligner wrote: plain text, and the control tokens in it, in order.

    `finished` is False where the length limit cut it off.
    """

    text: str
    controls: tuple[str, ...] = ()
    finished: bool = True


class PromptProfile(Protocol):
    """One prompt format."""

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[Scope]: ...

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have, each as a single id."""
        ...

    @property
    def bos(self) -> bool:
        """Whether the tokenizer's BOS goes before the prompt."""
        ...

    def render(self, review: Review) -> tuple[Segment, ...]: ...

    def draft(self, review: Review) -> str:
        """The output, as data, that would leave the sentence as it is."""
        ...

    def plain(self, text: str) -> str:
        """Text of a revision as it is meant: what was done to data is undone."""
        ...

    def read(self, revision: Revision, review: Review) -> Verdict:
        """The verdict. Raises `ReviewError` where the output cannot be trusted."""
        ...


def _unfinished(revision: Revision) -> None:
    if not revision.finished:
        raise Unreviewable("the aligner's revision did not come to an end within its length limit")


@dataclass(frozen=True, slots=True)
class Compact:
    """Our own format: role tokens and text for each turn, then committed text, sentence, revision.

    The order makes each review extend the cache of the one before it.
    """

    name: str = "compact"
    scopes: frozenset[Scope] = frozenset(("sentence", "whole"))
    control_tokens: tuple[str, ...] = COMPACT_TOKENS
    bos: bool = False

    def render(self, review: Review) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        for turn in review.conversation:
            segments.append(Segment(ROLES.get(turn.role, ROLES["user"]), control=True))
            segments.append(Segment(turn.text))
        segments.append(Segment(COMMITTED, control=True))
        segments.append(Segment(review.committed))
        segments.append(Segment(SENTENCE if review.scope == "sentence" else ANSWER, control=True))
        segments.append(Segment(review.sentence))
        segments.append(Segment(REVISION, control=True))
        return tuple(segments)

    def draft(self, review: Review) -> str:
        return review.sentence

    def plain(self, text: str) -> str:
        return text

    def read(self, revision: Revision, review: Review) -> Verdict:
        _unfinished(revision)
        end = END in revision.controls
        text = revision.text.strip()
        if KEEP in revision.controls:
            if text:
                raise Unreviewable("the aligner said keep and wrote a revision as well")
            return Verdict(None, end)
        return Verdict(None if text == review.sentence else text, end)


# A run of word joiners after "##" counts how often a mark was defused, so that defusing text which
# already looks defused stays reversible.
_JOINER = "\u2060"
_MARKS = (
    "Question|Answer_Prefix|Answer_Last_Sentence|Your_Revision|Answer|Correction"  # field names
)
_MARK = re.compile(rf"##({_JOINER}*)(?=(?:{_MARKS})\b)", re.IGNORECASE)
_DEFUSED = re.compile(rf"##{_JOINER}({_JOINER}*)(?=(?:{_MARKS})\b)", re.IGNORECASE)


def defuse(text: str) -> str:
    """Break every field mark of the published formats inside `text`; `restore` is the inverse."""
    return _MARK.sub(rf"##{_JOINER}\1", text)


def restore(text: str) -> str:
    """Undo `defuse`."""
    return _DEFUSED.sub(r"##\1", text)


# The turn marks of the `aligner` format are plain text as well.
_TURNS = "BEGINNING OF CONVERSATION|USER|ASSISTANT"
# Inside a longer word too: a tokenizer may well cut there.
_TURN = re.compile(rf"({_TURNS})({_JOINER}*):")
_DEFUSED_TURN = re.compile(rf"({_TURNS}){_JOINER}({_JOINER}*):")


def _same(text: str) -> str:
    return text


def _defuse_turns(text: str) -> str:
    return _TURN.sub(rf"\1{_JOINER}\2:", text)


def _restore_turns(text: str) -> str:
    return _DEFUSED_TURN.sub(r"\1\2:", text)


def last_user_message(conversation: tuple[Turn, ...]) -> str:
    for turn in reversed(conversation):
        if turn.role == "user":
            return turn.text
    return ""


@dataclass(frozen=True, slots=True)
class Published:
    """A format of the published models: one line of plain text inside a fixed turn.

    The middle is tokenised as one piece, as it was in training; only the turn around it may hold
    special tokens. The question is the last user message.
    """

    name: str
    template: str
    before: str
    after: str
    scopes: frozenset[Scope]
    control_tokens: tuple[str, ...] = ()
    bos: bool = True
    defuse_turns: Callable[[str], str] = _same
    restore_turns: Callable[[str], str] = _same

    def _defused(self, text: str) -> str:
        return self.defuse_turns(defuse(text))

    def render(self, review: Review) -> tuple[Segment, ...]:
        middle = self.template.format(
            question=self._defused(last_user_message(review.conversation)),
            prefix=self._defused(review.committed),
            last=self._defused(review.sentence),
        )
        segments = (Segment(self.before, True), Segment(middle), Segment(self.after, True))
        return tuple(segment for segment in segments if segment.text)

    def draft(self, review: Review) -> str:
        return self._defused(review.sentence)

    def plain(self, text: str) -> str:
        return restore(self.restore_turns(text))

    def read(self, revision: Revision, review: Review) -> Verdict:
        _unfinished(revision)
        text = self.plain(revision.text).strip()
        return Verdict(None if text == review.sentence else text)


_STREAM_LINE = (
    "##Question: {question} | ##Answer_Prefix: {prefix} | ##Answer_Last_Sentence: {last}"
    " | ##Your_Revision: "
)
_BOTH: frozenset[Scope] = frozenset(("sentence", "whole"))
_WHOLE: frozenset[Scope] = frozenset(("whole",))

PROFILES: dict[str, PromptProfile] = {
    profile.name: profile
    for profile in (
        Compact(),
        Published(
            "stream-aligner",
            _STREAM_LINE,
            # No newline after "model": the published checkpoints were trained without it.
            before="<start_of_turn>user\n",
            after="<end_of_turn>\n<start_of_turn>model",
            scopes=_BOTH,
            control_tokens=("<start_of_turn>", "<end_of_turn>"),
        ),
        Published("stream-aligner-plain", _STREAM_LINE, before="", after="", scopes=_BOTH),
        Published(
            "aligner",
            "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {last}"
            "\n##Correction:  ASSISTANT:",
            before="",
            after="",
            scopes=_WHOLE,
            defuse_turns=_defuse_turns,
            restore_turns=_restore_turns,
        ),
    )
}


def fit(review: Review, profile: PromptProfile, count: CountTokens, budget: int) -> Review:
    """The same review, cut so that its prompt has at most `budget` tokens by `count`.

    The sentence is never cut. The committed text may take half of what the rest leaves, more where
    the conversation does not need it; it is cut from its start, at a sentence. Of the conversation
    the oldest turns go first; where no user turn is left whole, the newest that went comes back
    without its beginning.
    Raises `ReviewError` where the sentence alone does not fit.
    """
    review = _clipped(review, budget)

    def size(candidate: Review) -> int:
        return sum(count(segment) for segment in profile.render(candidate))

    if size(review) <= budget:
        return review
    bare = replace(review, conversation=(), committed="")
    room = budget - size(bare)
    if room < 0:
        raise Unreviewable("the sentence does not fit the aligner's window")
    # Tokens of parts need not add up to those of the whole (defused marks, merges across borders),
    # so what comes out is measured, and cut shorter where it is still too long.
    slack = 0
    while slack <= room:
        candidate = _cut(review, bare, size, count, room - slack)
        if size(candidate) <= budget:
            return candidate
        slack = 2 * slack + 1
    return bare


def _clipped(review: Review, budget: int) -> Review:
    """Without what is surely too far back, so that the cost does not grow with the length.

    The committed text is cut at multiples of a power of two, as in `_cut_committed`, and keeps
    between once and twice that much.
    """
    room = 1 << (max(budget, 1) * _CLIP_CHARS_PER_TOKEN).bit_length()
    start = max(0, len(review.committed) // room - 1) * room
    turns: list[Turn] = []
    left = 2 * room
    for turn in reversed(review.conversation):
        turns.append(Turn(turn.role, turn.text[-room:]))
        left -= len(turns[-1].text)
        if left < 0:
            break
    return replace(review, conversation=tuple(reversed(turns)), committed=review.committed[start:])


def _cut(
    review: Review, bare: Review, size: Callable[[Review], int], count: CountTokens, room: int
) -> Review:
    """`bare` with as much context as fits in about `room` tokens."""
    fixed = size(bare)

    def talk(turns: tuple[Turn, ...]) -> int:
        return size(replace(bare, conversation=turns)) - fixed

    share = max(room // 2, room - talk(review.conversation))
    committed = _cut_committed(review.committed, count, share)
    left = room - (size(replace(bare, committed=committed)) - fixed)
    turns: tuple[Turn, ...] = ()
    for turn in reversed(review.conversation):
        if talk((turn, *turns)) <= left:
            turns = (turn, *turns)
            continue
        if all(kept.role != "user" for kept in turns):
            spare = left - talk((Turn(turn.role, ""), *turns))
            if text := _cut_head(turn.text, count, spare):
                turns = (Turn(turn.role, text), *turns)
        break
    return replace(review, conversation=turns, committed=committed)


def _cut_committed(text: str, count: CountTokens, room: int) -> str:
    """The last whole sentences of `text` that fit in `room` tokens, or a little less.

    The cut stays where it is while up to a quarter is added, and then moves on by that much: a
    prompt that began elsewhere with each sentence would find nothing of the last one in the cache.
    """
    start = len(text)
    ends: list[int] = []
    for sentence in reversed(split(text)):
        room -= count(Segment(sentence.text))
        if room < 0:
            break
        ends.append(start)
        start -= len(sentence.text)
    if start == 0 or not ends:
        return text[start:].lstrip()
    step = 1 << max((len(text) - start).bit_length() - 3, 0)
    stays = -(-start // step) * step
    start = next((at for at in (start, *reversed(ends)) if at >= stays), start)
    return text[start:].lstrip()


def _cut_head(text: str, count: CountTokens, room: int) -> str:
    """The longest end of `text` that fits in `room` tokens, by bisection on characters."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if count(Segment(text[middle:])) <= room:
            high = middle
        else:
            low = middle + 1
    return text[low:]
