"""What scripts about the loop share: a loop that was started, and a look at its actions."""

from stream_aligner_proxy.core.events import Deliver, OpenBranch, ReviewDone, StartReview
from stream_aligner_proxy.core.loop import AlignmentLoop
from stream_aligner_proxy.core.records import ChatRequest, Policy, Turn, Verdict

KEEP = Verdict()
CONVERSATION = (Turn("user", "q"),)


def loop_of(
    policy: Policy | None = None,
    *,
    can_continue=True,
    sure=True,
    max_tokens=None,
    stop=(),
    stop_included=False,
) -> AlignmentLoop:
    request = ChatRequest("m", {}, CONVERSATION, max_tokens, stop, stop_included)
    loop = AlignmentLoop(request, policy or Policy(), can_continue=can_continue, sure=sure)
    assert of(OpenBranch, loop.start()) == [OpenBranch(0, "", max_tokens)]
    return loop


def texts(actions) -> list[str]:
    return [action.text for action in actions if isinstance(action, Deliver)]


def of(kind, actions):
    return [action for action in actions if isinstance(action, kind)]


def settled(loop, actions, judge):
    """All actions, with every review answered at once."""
    done, pending = list(actions), of(StartReview, actions)
    while pending:
        started = pending.pop(0)
        new = loop.handle(ReviewDone(started.review, judge(started.request.sentence)))
        done += new
        pending += of(StartReview, new)
    return done
