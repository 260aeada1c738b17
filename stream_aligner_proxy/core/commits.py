"""The committed text of one reply: it only grows, and is what was delivered (rule 2).

Here text becomes final: cut at the client's limit and stop strings, counted, and handed out. The
head of the line may be delivered in part before its verdict, as far as the aligner has told what it
becomes and no limit or stop string can still cut into it.
"""

from typing import Literal

from stream_aligner_proxy.core.events import Action, Deliver
from stream_aligner_proxy.core.line import Part, Unit
from stream_aligner_proxy.core.meter import Meter
from stream_aligner_proxy.core.records import ChatRequest, Committed, Outcome
from stream_aligner_proxy.core.stops import until_stop

Cut = Literal["stop", "length"]


class Commits:
    """`judged` counts the units that were reviewed, or whose review failed."""

    def __init__(self, request: ChatRequest, actions: list[Action]) -> None:
        self.meter = Meter(request.max_tokens)
        self._stops = request.stop
        self._inclusive = request.stop_included
        self._actions = actions
        self.settled = ""  # the text of whole units
        self.sent = ""  # of the head of the line, delivered before its verdict
        self._measured = (0, 0)  # how much of that is sure to fit; see `Meter.sure_to_fit`
        self._index = 0
        self.parts: dict[str, int] = {}  # fields delivered beside the text, and how often
        self.judged = self.corrections = self.unreviewed = self.skipped = 0

    @property
    def text(self) -> str:
        return self.settled + self.sent

    def after(self, text: str, *, empty: bool) -> str:
        """`text` as it follows what is `empty` or not: a deleted opening takes whitespace along."""
        return text.lstrip() if empty and self._index else text

    def part(self, part: Part) -> None:
        self.meter.aside += part.tokens
        for name in part.part:
            self.parts[name] = self.parts.get(name, 0) + 1
        self._actions.append(Deliver(part=part.part))

    def begin(self, unit: Unit) -> None:
        """Deliver what is told of the head of the line."""
        if self._stops or not unit.told:
            return
        beginning = unit.lead + unit.told
        self._measured = self.meter.sure_to_fit(beginning, *self._measured)
        if self._measured[0] < len(beginning):
            beginning = beginning[: self._measured[0]].rstrip()
        beginning = self.after(beginning, empty=not self.settled)
        if new := beginning[len(self.sent) :]:
            self.sent = beginning
            self._actions.append(Deliver(text=new))

    def leave(self, unit: Unit, outcome: Outcome, *, measured: bool) -> Cut | None:
        """Commit a unit as it is; why the reply ends with it, if it does.

        `measured`: hold it to the client's limit. A branch that was not rewritten does that itself.
        """
        fitting = self.meter.cut(unit.text) if measured else unit.text
        text, stopped = self._until_stop(fitting)
        self._commit(unit, text, outcome)
        if stopped:
            return "stop"
        return "length" if fitting != unit.text else None

    def replace(self, unit: Unit, replacement: str) -> Cut | None:
        """Commit the new text of a unit; why the reply ends with it, if it does."""
        self.corrections += 1
        # Measured with the white space before it, which may be lines of it.
        fitting = self.meter.cut(unit.lead + replacement)[len(unit.lead) :]
        text = unit.lead + fitting + unit.tail if fitting else ""
        text, stopped = self._until_stop(text)
        self._commit(unit, text, "replace")
        if stopped:
            return "stop"
        return "length" if fitting != replacement else None

    def _until_stop(self, text: str) -> tuple[str, bool]:
        return until_stop(self._stops, self.settled, text, inclusive=self._inclusive)

    def _commit(self, unit: Unit, text: str, outcome: Outcome) -> None:
        text = self.after(text, empty=not self.settled)
        if not text.startswith(self.sent):
            text = self.sent  # the estimate of what fits has changed; what is out stays
        if outcome == "replace":
            self.meter.rewritten(text)
        else:
            self.meter.kept(text, unit.tokens, cut=len(text) < len(unit.text.strip()))
        self.judged += outcome != "passed"
        self.unreviewed += outcome == "unreviewed"
        self.skipped += unit.skipped
        self.settled += text
        rest = text[len(self.sent) :]
        self.sent = ""
        self._measured = (0, 0)
        self._actions.append(
            Deliver(
                text=rest,
                unit=Committed(
                    index=self._index,
                    original=unit.text,
                    text=text,
                    outcome=outcome,
                    branch=unit.branch,
                    end=bool(unit.verdict and unit.verdict.end),
                    review=unit.review,
                    error=unit.error.message if unit.error else None,
                    start=unit.start,
                ),
            )
        )
        self._index += 1
