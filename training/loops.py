"""The proxy's loop, offline and batched: many conversations at once, no server.

Rule: it decides as `core/loop.py` does. A sentence is reviewed given the committed text; a kept one
is committed; a replaced one opens a new branch from the corrected text (`stream`) or leaves the
branch as it is (`rewrite`); a deleted one never opens a branch; `end` finishes the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.prompts import PROFILES, PromptProfile, Revision
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from stream_aligner_proxy.core.sentences import split
from training.generate import Ids, Writer
from training.tokenizer import EOS
from training.world.chat import Message
from training.world.problems import Problem
from training.world.tone import Request

PROFILE = PROFILES["compact"]
MAX_ROUNDS = 16
MAX_REPLY = 220

LoopMode = Literal["off", "whole", "stream", "rewrite"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One review: the sentence, what was committed before it, and the verdict."""

    committed: str
    sentence: str
    verdict: Verdict


@dataclass(slots=True)
class Episode:
    """One conversation on its way through the loop."""

    messages: tuple[Message, ...]
    task: Problem | Request
    committed: str = ""
    waiting: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    running: bool = False
    finished: bool = False
    branches: int = 0

    @property
    def corrections(self) -> int:
        return sum(not one.verdict.kept for one in self.seen)


Reviewer = Callable[[Sequence[tuple[Episode, Review]]], list[Verdict]]


def encode_review(writer: Writer, review: Review, profile: PromptProfile = PROFILE) -> Ids:
    """Encode the prompt of a review."""
    ids: Ids = []
    for segment in profile.render(review):
        coder = writer.coder
        ids += [coder.ids[segment.text]] if segment.control else coder.data(segment.text)
    return ids


class ModelReviewer:
    """The trained aligner, greedy, asked by its profile."""

    def __init__(self, writer: Writer, profile: PromptProfile = PROFILE) -> None:
        self.writer, self.profile = writer, profile

    def __call__(self, asked: Sequence[tuple[Episode, Review]]) -> list[Verdict]:
        prompts = [encode_review(self.writer, review, self.profile) for _, review in asked]
        # What has not come to an end by then cannot be trusted, and would only take long.
        longest = max(
            (len(self.writer.coder.data(review.sentence)) for _, review in asked), default=0
        )
        written = self.writer.write(prompts, max_new=2 * longest + 32)
        verdicts = []
        for (_, review), (ids, closed) in zip(asked, written, strict=True):
            verdicts.append(self._read(review, ids, closed))
        return verdicts

    def _read(self, review: Review, ids: Ids, closed: bool) -> Verdict:
        """An output that cannot be read counts as keep here."""
        coder = self.writer.coder
        names = {coder.ids[token]: token for token in self.profile.control_tokens}
        controls = tuple(names[token] for token in ids if token in names)
        try:
            return self.profile.read(Revision(coder.text(ids), controls, closed), review)
        except ReviewError:
            return Verdict()


def _open(upstream: Writer, episodes: list[Episode], temperature: float) -> None:
    coder = upstream.coder
    prompts = [coder.turns(e.messages) + coder.data(e.committed.rstrip()) for e in episodes]
    replies = upstream.write(prompts, temperature=temperature, max_new=MAX_REPLY)
    for episode, (ids, _) in zip(episodes, replies, strict=True):
        episode.waiting = [sentence.text for sentence in split(coder.text(ids))]
        episode.running = True
        episode.branches += 1


def _review(reviewer: Reviewer, episodes: list[Episode]) -> dict[int, list[Verdict]]:
    asked: list[tuple[Episode, Review]] = []
    for episode in episodes:
        talk = tuple(Turn(m["role"], m["content"]) for m in episode.messages)
        ahead = episode.committed
        for text in episode.waiting:
            asked.append((episode, Review(talk, ahead, text.strip())))
            ahead += text
    given: dict[int, list[Verdict]] = {id(episode): [] for episode in episodes}
    for (episode, _), verdict in zip(asked, reviewer(asked), strict=True):
        given[id(episode)].append(verdict)
    return given


def _commit(episode: Episode, verdicts: list[Verdict], feed_back: bool) -> None:
    """Commit up to and with the first change."""
    for verdict in verdicts:
        text = episode.waiting.pop(0)
        core = text.strip()
        episode.seen.append(Seen(episode.committed, core, verdict))
        if verdict.replacement is None:
            episode.committed += text
        elif verdict.replacement:
            episode.committed += text[: len(text) - len(text.lstrip())] + verdict.replacement
        if verdict.end:
            episode.finished = True
            return
        if not verdict.kept:
            if feed_back and verdict.replacement:
                episode.waiting, episode.running = [], False
            break
    if episode.running and not episode.waiting:
        episode.finished = True


def run_stream(
    upstream: Writer,
    reviewer: Reviewer,
    episodes: list[Episode],
    *,
    temperature: float,
    feed_back: bool = True,
) -> None:
    """Take every episode to its end; `feed_back` False is rewrite-only."""
    for _ in range(MAX_ROUNDS):
        if fresh := [e for e in episodes if not e.finished and not e.running]:
            _open(upstream, fresh, temperature)
        for episode in episodes:
            episode.finished = episode.finished or not episode.waiting
        going = [e for e in episodes if not e.finished]
        if not going:
            return
        given = _review(reviewer, going)
        for episode in going:
            _commit(episode, given[id(episode)], feed_back)


def run_whole(
    upstream: Writer, reviewer: Reviewer | None, episodes: list[Episode], *, temperature: float
) -> None:
    """Write every reply in one go; review it once, or (without `reviewer`) not at all."""
    _open(upstream, episodes, temperature)
    asked = []
    for episode in episodes:
        talk = tuple(Turn(m["role"], m["content"]) for m in episode.messages)
        episode.committed = "".join(episode.waiting)
        episode.finished = True
        asked.append((episode, Review(talk, "", episode.committed.strip(), "whole")))
    if reviewer is None:
        return
    for (episode, review), verdict in zip(asked, reviewer(asked), strict=True):
        episode.seen.append(Seen("", review.sentence, verdict))
        if verdict.replacement is not None:
            episode.committed = verdict.replacement


__all__ = [
    "EOS", "PROFILE", "Episode", "LoopMode", "ModelReviewer", "Reviewer", "Seen", "encode_review",
    "run_stream", "run_whole",
]  # fmt: skip
