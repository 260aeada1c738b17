"""Mode `off` through a session: what comes in goes out, once, and the branch is closed."""

import pytest

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.events import (
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Deliver,
    Fail,
    Finish,
    IllegalEvent,
    OpenBranch,
    PartArrived,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.passing import PassingLoop
from stream_aligner_proxy.core.records import ChatRequest, Cost, Usage


def running() -> PassingLoop:
    loop = PassingLoop(ChatRequest("m", {}, (), max_tokens=7))
    assert loop.start() == [OpenBranch(0, "", 7)]
    return loop


def test_everything_is_delivered_as_it_comes() -> None:
    loop = running()
    usage = Usage(2, 3)
    assert loop.handle(TextArrived(0, "Half a sen")) == [Deliver(text="Half a sen")]
    assert loop.handle(PartArrived(0, {"tool_calls": []})) == [Deliver(part={"tool_calls": []})]
    assert loop.handle(TextEnded(0, "stop")) == []
    ended = loop.handle(BranchEnded(0, "stop", usage))
    assert ended == [CloseBranch(0), Finish("stop", usage, Cost(branches=1))]
    assert loop.handle(TextArrived(0, "late")) == loop.abandon() == []


def test_a_broken_branch_is_closed_and_fails_the_reply() -> None:
    loop, error = running(), UpstreamGarbled("cut off")
    assert loop.handle(BranchBroke(0, error)) == [CloseBranch(0), Fail(error)]


def test_a_reply_that_is_left_closes_its_branch_once() -> None:
    loop = running()
    assert loop.abandon() == [CloseBranch(0)]
    assert loop.abandon() == []
    with pytest.raises(IllegalEvent):
        loop.start()
