"""A branch that breaks, and one that will not continue: the reply goes on where it can."""

import pytest

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.events import (
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Fail,
    Finish,
    OpenBranch,
    PartArrived,
    PauseBranch,
    PromptMetered,
    ResumeBranch,
    ReviewDone,
    StartReview,
    TextArrived,
)
from stream_aligner_proxy.core.records import Mode, Policy, Usage, Verdict
from tests.core.scripts import KEEP, loop_of, of, settled, texts

GONE = UpstreamUnreachable("gone")
REFUSED = ContinuationFailed("it began again")


def keep(sentence: str) -> Verdict:
    return KEEP


# --- resume -----------------------------------------------------------------------------------


def test_after_a_break_the_reply_goes_on_from_what_is_committed():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two."))
    loop.handle(TextArrived(0, " Thr"))
    assert of(OpenBranch, loop.handle(BranchBroke(0, GONE))) == []  # what waits comes first
    actions = [*loop.handle(ReviewDone(0, KEEP)), *loop.handle(ReviewDone(1, KEEP))]
    assert texts(actions) == ["One.", " Two."]
    assert of(OpenBranch, actions) == [OpenBranch(1, "One. Two.", None)]
    actions = [*loop.handle(TextArrived(1, " Three.")), *loop.handle(BranchEnded(1, "stop"))]
    actions = settled(loop, actions, keep)
    assert loop.committed == "One. Two. Three."
    [finish] = of(Finish, actions)
    assert finish.cost.resumes == 1
    assert finish.cost.discarded_tokens > 0


def test_a_rewrite_while_the_break_waits_continues_and_needs_no_resume():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Thr"))
    loop.handle(BranchBroke(0, GONE))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "1.", None)]
    assert loop.cost.resumes == 0


def test_a_reply_of_which_nothing_was_delivered_is_begun_again_even_without_continuation():
    loop = loop_of(can_continue=False)
    loop.handle(TextArrived(0, "One"))
    actions = loop.handle(BranchBroke(0, UpstreamTimeout("silence")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "", None)]


def test_a_whole_answer_is_begun_again():
    loop = loop_of(Policy(mode=Mode.WHOLE))
    loop.handle(TextArrived(0, "One. Two. Thr"))
    assert of(OpenBranch, loop.handle(BranchBroke(0, GONE))) == [OpenBranch(1, "", None)]


@pytest.mark.parametrize(
    ("policy", "can_continue", "error"),
    [
        (Policy(max_resumes=0), True, GONE),
        (Policy(), False, GONE),
        (Policy(), True, UpstreamRejected("no", status=400)),
        (Policy(), True, REFUSED),
    ],
)
def test_what_cannot_be_helped_ends_the_reply(policy, can_continue, error):
    loop = loop_of(policy, can_continue=can_continue)
    loop.handle(TextArrived(0, "One. T"))
    loop.handle(ReviewDone(0, KEEP))
    assert of(Fail, loop.handle(BranchBroke(0, error))) == [Fail(error)]


def test_only_so_many_times():
    loop = loop_of(Policy(max_resumes=2))
    for branch in range(2):
        assert of(OpenBranch, loop.handle(BranchBroke(branch, GONE)))
    assert of(Fail, loop.handle(BranchBroke(2, GONE))) == [Fail(GONE)]


def test_after_a_tool_call_nothing_is_asked_again():
    loop = loop_of()
    settled(loop, loop.handle(TextArrived(0, "One. T")), keep)
    loop.handle(PartArrived(0, {"tool_calls": [{"index": 0}]}, 1))
    loop.handle(ReviewDone(1, KEEP))
    assert of(Fail, loop.handle(BranchBroke(0, GONE))) == [Fail(GONE)]


def test_thoughts_that_were_delivered_forbid_to_begin_again_but_not_to_go_on():
    loop = loop_of()
    loop.handle(PartArrived(0, {"reasoning_content": "hm"}, 1))
    assert of(Fail, loop.handle(BranchBroke(0, GONE))) == [Fail(GONE)]
    loop = loop_of()
    loop.handle(PartArrived(0, {"reasoning_content": "hm"}, 1))
    settled(loop, loop.handle(TextArrived(0, "One. T")), keep)
    assert of(OpenBranch, loop.handle(BranchBroke(0, GONE))) == [OpenBranch(1, "One.", None)]


def test_a_reply_that_has_all_the_tokens_it_may_ends_instead():
    loop = loop_of(max_tokens=1)
    settled(loop, loop.handle(TextArrived(0, "One. T")), keep)
    [finish] = of(Finish, loop.handle(BranchBroke(0, GONE)))
    assert finish.finish_reason == "length"


# --- parking ----------------------------------------------------------------------------------


def parked(**options):
    """A loop whose first sentence was rewritten while two more waited; the actions of that."""
    loop = loop_of(sure=False, **options)
    loop.handle(PromptMetered(0, 10))
    for text in ("One.", " Two.", " Three", "."):
        loop.handle(TextArrived(0, text))
    return loop, loop.handle(ReviewDone(0, Verdict("1.")))


def test_where_it_is_not_sure_the_old_branch_is_paused_and_not_closed():
    _, actions = parked()
    assert of(PauseBranch, actions) == [PauseBranch(0)]
    assert of(OpenBranch, actions) == [OpenBranch(1, "1.", None)]
    assert of(CloseBranch, actions) == []


def test_the_first_text_of_the_new_branch_closes_the_old_one():
    loop, _ = parked()
    actions = loop.handle(TextArrived(1, " 2."))
    assert of(CloseBranch, actions) == [CloseBranch(0)]
    assert loop.cost.discarded_tokens == 3


def test_an_immediate_end_of_the_new_branch_is_a_normal_end():
    loop, _ = parked()
    actions = loop.handle(BranchEnded(1, "stop"))
    assert {action.branch for action in of(CloseBranch, actions)} == {0, 1}
    [finish] = of(Finish, actions)
    assert loop.committed == "1."
    assert finish.finish_reason == "stop"


@pytest.mark.parametrize("error", [REFUSED, GONE, UpstreamRejected("no", status=422)])
def test_a_new_branch_that_fails_lets_the_old_one_go_on_rewritten_only(error):
    loop, _ = parked()
    actions = loop.handle(BranchBroke(1, error))
    assert of(CloseBranch, actions) == [CloseBranch(1)]
    assert of(ResumeBranch, actions) == [ResumeBranch(0)]
    [again] = [s.request for s in of(StartReview, actions) if s.request.sentence == "Two."]
    assert again.committed == "1."  # it is reviewed on what was committed
    fix = {"Two.": Verdict("2.")}
    actions = settled(loop, actions, lambda sentence: fix.get(sentence, KEEP))
    assert of(OpenBranch, actions) == []
    actions = [*loop.handle(TextArrived(0, " Four.")), *loop.handle(BranchEnded(0, "stop"))]
    actions = settled(loop, actions, keep)
    assert loop.committed == "1. 2. Three. Four."
    [finish] = of(Finish, actions)
    assert finish.cost.refused_continuations == 1
    assert finish.cost.branches == 2


def test_a_branch_that_had_ended_is_parked_with_its_end():
    loop = loop_of(sure=False)
    loop.handle(TextArrived(0, "One. Two."))
    loop.handle(BranchEnded(0, "stop", Usage(10, 4)))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert of(PauseBranch, actions) == []
    actions = settled(loop, loop.handle(BranchBroke(1, REFUSED)), keep)
    assert loop.committed == "1. Two."
    assert of(Finish, actions)[0].finish_reason == "stop"


def test_a_break_of_the_old_branch_after_it_went_on_ends_the_reply():
    """It was shown that nothing can be continued."""
    loop, _ = parked()
    settled(loop, loop.handle(BranchBroke(1, REFUSED)), keep)
    assert of(Fail, loop.handle(BranchBroke(0, GONE))) == [Fail(GONE)]


def test_abandoning_closes_the_parked_branch_too():
    loop, _ = parked()
    assert {action.branch for action in of(CloseBranch, loop.abandon())} == {0, 1}


def test_the_limit_of_tokens_holds_over_a_refused_continuation():
    loop, actions = parked(max_tokens=6)
    assert of(OpenBranch, actions)[0].max_tokens < 6
    settled(loop, loop.handle(BranchBroke(1, REFUSED)), keep)
    for _ in range(10):
        settled(loop, loop.handle(TextArrived(0, " More.")), keep)
        if loop.done:
            break
    assert loop.done
    assert len(loop.committed.split()) <= 6
