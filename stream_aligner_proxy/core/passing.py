"""Mode `off` where the upstream's answer must be translated: everything is delivered as it comes.

The same events and actions as the alignment loop, so the session performs this one too.
"""

from stream_aligner_proxy.core.events import (
    Action,
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Deliver,
    Event,
    Fail,
    Finish,
    IllegalEvent,
    OpenBranch,
    PartArrived,
    TextArrived,
)
from stream_aligner_proxy.core.records import ChatRequest, Cost


class PassingLoop:
    """The loop of one reply in mode `off`: one branch, untouched, nothing reviewed."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._started = self._done = False

    @property
    def wants_text(self) -> bool:
        return True

    @property
    def cost(self) -> Cost:
        return Cost(branches=int(self._started))

    def start(self) -> list[Action]:
        if self._started:
            raise IllegalEvent("the loop was started before")
        self._started = True
        return [OpenBranch(0, "", self._request.max_tokens)]

    def abandon(self) -> list[Action]:
        if self._done:
            return []
        self._done = True
        return [CloseBranch(0)] if self._started else []

    def handle(self, event: Event) -> list[Action]:
        if self._done:
            return []
        match event:
            case TextArrived(_, text):
                return [Deliver(text=text)]
            case PartArrived(_, part):
                return [Deliver(part=part)]
            case BranchEnded(_, finish_reason, usage):
                return [*self.abandon(), Finish(finish_reason, usage, self.cost)]
            case BranchBroke(_, error):
                return [*self.abandon(), Fail(error)]
            case _:
                return []
