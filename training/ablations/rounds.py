"""The second claim of the papers, in small: the more sentences are corrected, the better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.records import Review, Verdict
from training.demo_aligner import UPSTREAM
from training.evaluate import ratio
from training.generate import Writer
from training.loops import Episode, ModelReviewer, run_stream
from training.world.judge import grade
from training.world.problems import Problem

CORRECTED = (0, 1, 2, 3, None)


class FirstOnly:
    """A reviewer that corrects the first `most` sentences that it would, and keeps the rest."""

    def __init__(self, inner: ModelReviewer, most: int | None) -> None:
        self._inner, self._most = inner, most

    def __call__(self, asked: Sequence[tuple[Episode, Review]]) -> list[Verdict]:
        verdicts = self._inner(asked)
        if self._most is None:
            return verdicts
        left = {id(e): self._most - e.corrections for e, _ in asked}
        given = []
        for (episode, _), verdict in zip(asked, verdicts, strict=True):
            if not verdict.kept and left[id(episode)] <= 0:
                given.append(Verdict())
                continue
            left[id(episode)] -= not verdict.kept
            given.append(verdict)
        return given


def by_corrections(model: Path, tasks: list[Problem]) -> list[dict[str, Any]]:
    """Accuracy of the upstream's replies where so many of their sentences may be corrected."""
    upstream, reviewer = Writer.load(UPSTREAM), ModelReviewer(Writer.load(model, exact=True))
    found = []
    for most in CORRECTED:
        episodes = [Episode(({"role": "user", "content": p.question},), p) for p in tasks]
        run_stream(upstream, FirstOnly(reviewer, most), episodes, temperature=0.0)
        right = sum(grade(p.answer, e.committed) for p, e in zip(tasks, episodes, strict=True))
        name = "all" if most is None else str(most)
        found.append({"corrected": name, "accuracy": ratio(right, len(tasks)), "n": len(tasks)})
    return found
