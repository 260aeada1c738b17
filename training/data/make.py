"""What the adapters have in common: from a record's texts to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from stream_aligner_proxy.core.records import Turn
from training.data.align import Step, align, first_difference, likeness
from training.data.rows import (
    BadRecord,
    Example,
    Row,
    SetAside,
    Whole,
    edit_share,
    group_of,
    key_text,
    kind_of,
)

# An edit that leaves less than this of the text is another answer, not a correction of this one.
_SAME_TEXT: Final = 0.5


@dataclass(frozen=True, slots=True)
class Maker:
    """Builds the examples of one source.

    `similarity`: a pair's first difference, and a step's correction, must have this much in common
    (1 - edit distance / length) to count as a correction. `code`: rows for code too, for a proxy
    with `review_code`. `whole`: whole-answer rows too. `beside`: the folder that the source's own
    lies in, for those that need another's. `left_out` collects the corrections (before, after)
    that gave no row, since they have too little in common; the caller clears it.
    """

    source: str
    similarity: float = 0.5
    code: bool = False
    whole: bool = True
    beside: Path | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def edit(
        self,
        question: tuple[Turn, ...],
        answer: str,
        correction: str,
        *,
        key: str | None = None,
        ends: bool = True,
    ) -> Iterator[Example]:
        """An answer and the corrected one. Where little of it is left, see `pair`."""
        steps = _nonempty(answer, align(answer, correction, ends=ends))
        if likeness(steps) < _SAME_TEXT:
            yield from self.pair(question, answer, correction, key=key)
            return
        yield from self._rows(question, steps, "", key)
        yield from self._whole(question, answer, correction, key)

    def pair(
        self, question: tuple[Turn, ...], rejected: str, chosen: str, *, key: str | None = None
    ) -> Iterator[Example]:
        """Two different answers, the second better: the whole, and the first difference."""
        steps = _nonempty(rejected, first_difference(rejected, chosen))
        if steps and steps[-1].kind == "fix" and not self._close(steps[-1].last, steps[-1].text):
            del steps[-1]
        yield from self._rows(question, steps, "", key)
        yield from self._whole(question, rejected, chosen, key)

    def steps(
        self,
        question: tuple[Turn, ...],
        right: Sequence[str],
        wrong: str | None = None,
        corrections: Iterable[str] = (),
        *,
        key: str | None = None,
        ends: bool = False,
    ) -> Iterator[Example]:
        """Right steps, one a line, are kept; the wrong one after them becomes each correction.

        `ends`: nothing comes after the correction.
        """
        text = "\n".join(part.strip() for part in right if part.strip())
        if not text and wrong is None:
            raise BadRecord("no step holds a text")
        if text:
            yield from self._rows(question, align(text, text, ends=False), "", key)
        if wrong is None:
            yield from self._whole(question, text, text, key)
            return
        if not wrong.strip():
            raise SetAside("the wrong step is empty")
        lead = "\n" if text else ""
        for better in dict.fromkeys(part.strip() for part in corrections):
            if better == wrong.strip() or not self._close(wrong, better):
                continue
            steps = align(lead + wrong.strip(), lead + better, after=text, ends=ends)
            yield from self._rows(question, steps, text, key)

    def keep(
        self, question: tuple[Turn, ...], answer: str, *, key: str | None = None
    ) -> Iterator[Example]:
        """An answer in which nothing is wrong."""
        yield from self._rows(question, align_same(answer), "", key)
        yield from self._whole(question, answer, answer, key)

    def whole_only(
        self, question: tuple[Turn, ...], answer: str, correction: str, *, key: str | None = None
    ) -> Iterator[Example]:
        """An answer and another way to put it right, which says nothing about its sentences."""
        yield from self._whole(question, answer, correction, key)

    def review(
        self,
        question: tuple[Turn, ...],
        prefix: str,
        last: str,
        correction: str,
        end: bool,
        *,
        key: str | None = None,
    ) -> Row:
        """One review, told whole."""
        last, correction = last.strip(), correction.strip()
        group = group_of(key if key is not None else key_text(question))
        kind = kind_of(last, correction, end)
        return Row(question, prefix, last, correction, end, kind, self.source, group)

    def reviewed(self, question: tuple[Turn, ...], steps: Sequence[Step]) -> Iterator[Example]:
        """Reviews that were made; `code` marks what was not reviewed."""
        yield from replace(self, code=False)._rows(question, steps, "", None)

    def _close(self, last: str, correction: str) -> bool:
        last, correction = last.strip(), correction.strip()
        if 1 - edit_share(last, correction) >= self.similarity:
            return True
        self.left_out.append((last, correction))
        return False

    def _rows(
        self, question: tuple[Turn, ...], steps: Iterable[Step], prefix: str, key: str | None
    ) -> Iterator[Row]:
        group = group_of(key if key is not None else key_text(question))
        for step in steps:
            if not step.code or self.code:
                yield Row(
                    question, prefix, step.last, step.correction,
                    step.end, step.kind, self.source, group,
                )  # fmt: skip
            prefix += step.text

    def _whole(
        self, question: tuple[Turn, ...], answer: str, correction: str, key: str | None
    ) -> Iterator[Whole]:
        if self.whole and answer.strip():
            group = group_of(key if key is not None else key_text(question))
            yield Whole(question, answer.strip(), correction.strip(), self.source, group)


def align_same(text: str) -> list[Step]:
    return _nonempty(text, align(text, text, ends=False) if text.strip() else [])


def _nonempty(text: str, steps: list[Step]) -> list[Step]:
    if not text.strip():
        raise BadRecord("the answer is empty")
    return steps
