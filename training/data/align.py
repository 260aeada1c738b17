"""Two versions of a text, sentence by sentence: what a reviewer would have had to say.

`align` walks through the original as the proxy would, one sentence of `core.sentences` at a time,
and says for each what was committed in its place. The texts of the steps, joined, are the corrected
text exactly.

Rules:

- Dynamic programming over sentences: one to one (free where equal, else as dear as unlike), one
  to none, none to one; two to one and one to two where both have a share in it.
- An inserted sentence belongs to the review of the one it stands before, since that is when its
  absence can be seen; after the last, to the last.
- Two sentences that became one are reviewed together (`merge_below` in the proxy). There is no
  honest row for the first alone: half of its correction comes from text not yet seen.
- What the original says after the corrected text is over gives one `end` step, at its first
  sentence; the rest is never seen. A changed last sentence says `end` itself, because the upstream
  is made to go on after it.
- Whitespace is not compared: it belongs to the proxy. The committed text has the corrected one's.
- Code is passed through by the proxy, so it makes steps but (see `Step.code`) no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from stream_aligner_proxy.core.sentences import SentenceSplitter
from training.data.rows import Kind, edit_share

_GAP: Final = (
    0.5  # of leaving out or adding a sentence; two of them cost what nothing in common does
)
_JOIN: Final = 0.1  # of a merge or a split, beside how unlike it is
_BAND: Final = 24  # sentences an alignment may stray from the diagonal, which makes it linear
_SHORT: Final = 24  # characters; texts as short as this are compared without a look at trigrams
_ALIKE: Final = 0.2  # with a smaller share of trigrams in common, texts count as unlike


@dataclass(frozen=True, slots=True)
class Step:
    """One review: `original` as it came, and `text` committed for it, both with whitespace."""

    original: str
    text: str
    kind: Kind
    end: bool = False
    code: bool = False

    @property
    def last(self) -> str:
        return self.original.strip()

    @property
    def correction(self) -> str:
        return self.text.strip()


@dataclass(frozen=True, slots=True)
class _Unit:
    text: str
    code: bool
    bare: str
    grams: frozenset[str] = field(repr=False)


def _unit(text: str, code: bool) -> _Unit:
    bare = text.strip()
    return _Unit(text, code, bare, frozenset(bare[i : i + 3] for i in range(len(bare) - 2)))


def _units(text: str, after: str) -> list[_Unit]:
    """Sentences. One of whitespace alone, which nobody reviews, joins the next, else the last."""
    splitter = SentenceSplitter(after=after)
    units: list[_Unit] = []
    blank = ""
    for sentence in [*splitter.feed(text), *splitter.flush()]:
        if sentence.text.isspace():
            blank += sentence.text
        else:
            units.append(_unit(blank + sentence.text, sentence.kind == "code"))
            blank = ""
    if blank and units:
        units[-1] = _unit(units[-1].text + blank, units[-1].code)
    return units


def unlikeness(a: _Unit, b: _Unit, most: float = 1.0) -> float:
    """0 for equal sentences, 1 for nothing in common; 1 as well for anything above `most`."""
    if a.bare == b.bare:
        return 0.0
    longest = max(len(a.bare), len(b.bare))
    if abs(len(a.bare) - len(b.bare)) > most * longest:
        return 1.0
    if longest > _SHORT:
        common = len(a.grams & b.grams)
        most_grams = max(len(a.grams), len(b.grams))
        # One edit spoils at most three trigrams.
        if common < _ALIKE * most_grams or most_grams - common > 3 * most * longest:
            return 1.0
    return edit_share(a.bare, b.bare)


def _joined(units: Sequence[_Unit]) -> list[_Unit | None]:
    """Each sentence with the next one as one; code is never joined."""
    return [None if x.code or y.code else _unit(x.text + y.text, False) for x, y in pairwise(units)]


def _path(a: Sequence[_Unit], b: Sequence[_Unit]) -> list[tuple[int, int]]:
    """The cheapest moves: how many sentences of each text a step takes. Of moves that cost the
    same the simplest wins. Time: sentences times the band."""
    n, m = len(a), len(b)
    band = _BAND + abs(n - m)
    twice_a, twice_b = _joined(a), _joined(b)
    nowhere = (float("inf"), (0, 0))
    best: list[dict[int, tuple[float, tuple[int, int]]]] = [{} for _ in range(n + 1)]
    best[0][0] = (0.0, (0, 0))

    for i in range(n + 1):
        row, above = best[i], best[i - 1] if i else {}
        for j in range(max(0, i - band), min(m, i + band) + 1):
            cost, move = row.get(j, nowhere)
            for near, step in ((above.get(j, nowhere), (1, 0)), (row.get(j - 1, nowhere), (0, 1))):
                if near[0] + _GAP < cost:
                    cost, move = near[0] + _GAP, step
            diagonal = above.get(j - 1, nowhere)[0]
            if diagonal <= cost:
                dear = diagonal + unlikeness(a[i - 1], b[j - 1], cost - diagonal)
                if dear <= cost:
                    cost, move = dear, (1, 1)
            for one, two, parts, from_, step in (
                (i >= 2 and twice_a[i - 2], b[j - 1] if j else None, a[i - 2 : i],
                 best[i - 2].get(j - 1, nowhere)[0] if i >= 2 else nowhere[0], (2, 1)),
                (j >= 2 and twice_b[j - 2], a[i - 1] if i else None, b[max(j - 2, 0) : j],
                 above.get(j - 2, nowhere)[0], (1, 2)),
            ):  # fmt: skip
                room = cost - from_ - _JOIN
                if not one or two is None or room <= 0:
                    continue
                far = unlikeness(one, two, room)
                # A sentence more alike to one of the two was not merged or split: the other was
                # left out or added.
                if from_ + _JOIN + far < cost and far < min(unlikeness(p, two) for p in parts):
                    cost, move = from_ + _JOIN + far, step
            if move != (0, 0):
                row[j] = (cost, move)

    moves: list[tuple[int, int]] = []
    i, j = n, m
    while i or j:
        move = best[i][j][1]
        moves.append(move)
        i, j = i - move[0], j - move[1]
    return moves[::-1]


def _same(a: Sequence[_Unit], b: Sequence[_Unit]) -> int:
    """How many sentences the two begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x.bare != y.bare),
                min(len(a), len(b)))  # fmt: skip


def _moves(a: Sequence[_Unit], b: Sequence[_Unit]) -> list[tuple[int, int]]:
    """`_path`, with what both begin and end with taken as it is."""
    head = _same(a, b)
    a, b = a[head:], b[head:]
    tail = _same(a[::-1], b[::-1])
    middle = _path(a[: len(a) - tail], b[: len(b) - tail])
    return [(1, 1)] * head + middle + [(1, 1)] * tail


def _kind(a: Sequence[_Unit], text: str, inserted: bool) -> Kind:
    correction = text.strip()
    if not correction:
        return "delete"
    if len(a) > 1:
        return "merge"
    if a[0].bare == correction:
        return "keep"
    return "insert" if inserted else "fix"


def align(original: str, corrected: str, *, after: str = "", ends: bool = True) -> list[Step]:
    """What was committed for each sentence of `original`, so that `corrected` came out.

    `after`: the committed text that both continue. `ends`: the reply is over where `corrected` is;
    otherwise more is to come. Raises `ValueError` where `original` has nothing to review.
    """
    a, b = _units(original, after), _units(corrected, after)
    if not a:
        raise ValueError("the original text is empty")
    steps: list[Step] = []
    waiting = ""  # inserted text that the next sentence of the original will carry
    i = j = 0
    for di, dj in _moves(a, b):
        old, new = a[i : i + di], b[j : j + dj]
        i, j = i + di, j + dj
        text = waiting + "".join(unit.text for unit in new)
        if not old:
            waiting = text
            continue
        kind = _kind(old, text, bool(waiting))
        code = all(unit.code for unit in old)
        steps.append(Step("".join(unit.text for unit in old), text, kind, code=code))
        waiting = ""
    if not b and corrected:  # whitespace alone
        waiting = corrected
    if waiting:
        last = steps[-1]
        kind = "insert" if waiting.strip() and last.text.strip() else _kind(a[-1:], waiting, True)
        steps[-1] = Step(last.original, last.text + waiting, kind, code=last.code)
    return _ended(steps) if ends else steps


def _ended(steps: list[Step]) -> list[Step]:
    """Say where the reply is over, and leave out what nobody would have seen."""
    final = max((at for at, step in enumerate(steps) if step.correction), default=-1)
    over = steps[: final + 1]
    space = "".join(step.text for step in steps[final + 1 :])  # no more than that
    if over and over[-1].kind != "keep":
        changed = over[-1]
        over[-1] = Step(changed.original, changed.text + space, changed.kind, True, changed.code)
    elif final + 1 < len(steps):
        first = steps[final + 1]
        over.append(Step(first.original, space, "end", True, first.code))
    return over


def likeness(steps: Sequence[Step]) -> float:
    """How much of the corrected text was in the original: 1 for all of it, by characters."""
    size = sum(max(len(step.last), len(step.correction)) for step in steps)
    far = sum(
        edit_share(step.last, step.correction) * max(len(step.last), len(step.correction))
        for step in steps
    )
    return 1 - far / size if size else 1.0


def first_difference(original: str, corrected: str, *, after: str = "") -> list[Step]:
    """The sentences that two different answers begin with, and the first that differs.

    For answers that part for good, as preference pairs do. What comes after the first difference
    answers another beginning: pairing it would teach the aligner to rewrite a sentence into one
    that belongs elsewhere, after a prefix under which the original was never written. No step
    where the original is over first: there is no sentence to review.
    """
    a, b = _units(original, after), _units(corrected, after)
    if not a:
        raise ValueError("the original text is empty")
    same = _same(a, b)
    steps = [Step(x.text, y.text, "keep", code=x.code) for x, y in zip(a[:same], b, strict=False)]
    if same < len(a) and same < len(b):
        x, y = a[same], b[same]
        steps.append(Step(x.text, y.text, "fix", same + 1 == len(b), x.code))
    elif same < len(a):
        steps.append(Step(a[same].text, "", "end", True, a[same].code))
    return steps


def align_best(sentence: str, text: str) -> str | None:
    """The sentence of `text` that is most like this one; None where all have nothing in common."""
    wanted = _unit(sentence.strip(), False)
    found = [(unlikeness(wanted, unit), unit.bare) for unit in _units(text, "")]
    cost, best = min(found, default=(1.0, ""))
    return best if cost < 1 else None
