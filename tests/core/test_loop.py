"""The alignment loop, as scripts: what happens, and what the loop asks for."""

import pytest

from stream_aligner_proxy.core import branch
from stream_aligner_proxy.core.cutting import WholeAnswer
from stream_aligner_proxy.core.errors import ReviewError, UpstreamUnreachable
from stream_aligner_proxy.core.events import (
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Deliver,
    DropReview,
    Fail,
    Finish,
    IllegalEvent,
    OpenBranch,
    PartArrived,
    PromptMetered,
    ReviewBroke,
    ReviewDone,
    StartReview,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Mode,
    Policy,
    Review,
    Turn,
    Usage,
    Verdict,
)
from stream_aligner_proxy.core.shadow import ShadowLoop
from tests.core.scripts import KEEP, loop_of, of, settled, texts

REQUEST = ChatRequest("m", {}, (Turn("user", "q"),))


def shadow_of(policy: Policy) -> ShadowLoop:
    loop = ShadowLoop(REQUEST, policy)
    loop.start()
    return loop


def test_a_sentence_is_reviewed_as_soon_as_it_is_complete_and_delivered_when_kept():
    loop = loop_of()
    assert loop.handle(TextArrived(0, "One")) == []
    actions = loop.handle(TextArrived(0, " two. Three"))
    assert actions == [StartReview(0, Review((Turn("user", "q"),), "", "One two."))]
    assert texts(loop.handle(ReviewDone(0, KEEP))) == ["One two."]
    assert loop.committed == "One two."


def test_a_replacement_closes_the_branch_and_continues_from_the_corrected_text():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Thr"))
    loop.handle(ReviewDone(0, KEEP))
    actions = loop.handle(ReviewDone(1, Verdict("2.")))
    assert texts(actions) == [" 2."]
    assert of(CloseBranch, actions)[0].branch == 0
    assert of(OpenBranch, actions) == [OpenBranch(1, "One. 2.", None)]
    assert loop.handle(TextArrived(0, "ee. Four. Five.")) == []
    loop.handle(TextArrived(1, " 3. "))
    loop.handle(BranchEnded(1, "stop"))
    actions = loop.handle(ReviewDone(2, KEEP))
    assert loop.committed == "One. 2. 3. "
    assert of(Finish, actions)[0].finish_reason == "stop"


def test_reviews_made_ahead_assume_that_what_waits_is_kept_and_are_dropped_when_it_is_not():
    loop = loop_of(Policy(review_ahead=3))
    actions = loop.handle(TextArrived(0, "One. Two. Three. F"))
    assert [a.request.committed for a in of(StartReview, actions)] == ["", "One.", "One. Two."]
    assert loop.handle(ReviewDone(1, KEEP)) == []
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert of(DropReview, actions) == [DropReview(2)]
    assert loop.handle(ReviewDone(2, KEEP)) == []
    assert loop.committed == "1."


def test_a_replacement_that_changes_nothing_is_a_keep():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. T"))
    actions = loop.handle(ReviewDone(0, Verdict(" One.\n")))
    assert of(Deliver, actions)[0].unit.outcome == "keep"
    assert not of(OpenBranch, actions)
    assert loop.cost.corrections == 0


def test_verdicts_commit_in_order_whatever_order_they_come_in():
    loop = loop_of(Policy(review_ahead=3))
    loop.handle(TextArrived(0, "One. Two. Three. F"))
    assert texts(loop.handle(ReviewDone(2, KEEP))) == []
    assert texts(loop.handle(ReviewDone(1, KEEP))) == []
    assert texts(loop.handle(ReviewDone(0, KEEP))) == ["One.", " Two.", " Three."]


def test_where_the_upstream_cannot_continue_the_branch_is_kept_and_reviewed_on_the_new_text():
    loop = loop_of(Policy(review_ahead=2), can_continue=False)
    loop.handle(TextArrived(0, "One. Two. T"))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert not of(CloseBranch, actions)
    assert [a.request.committed for a in of(StartReview, actions)] == ["1."]
    [again] = of(StartReview, actions)
    assert texts(loop.handle(ReviewDone(again.review, KEEP))) == [" Two."]


def test_a_deletion_keeps_the_branch_because_the_same_prefix_would_bring_the_sentence_back():
    loop = loop_of(Policy(review_ahead=1))
    loop.handle(TextArrived(0, "Rude. Fine. M"))
    actions = loop.handle(ReviewDone(0, Verdict("")))
    assert texts(actions) == [""]
    assert not of(OpenBranch, actions)
    actions = loop.handle(ReviewDone(1, KEEP))
    assert texts(actions) == ["Fine."]


def test_after_the_allowed_continuations_corrections_no_longer_restart_the_upstream():
    loop = loop_of(Policy(max_continuations=1))
    loop.handle(TextArrived(0, "One. T"))
    assert of(OpenBranch, loop.handle(ReviewDone(0, Verdict("1."))))
    loop.handle(TextArrived(1, " Two. T"))
    assert not of(OpenBranch, loop.handle(ReviewDone(1, Verdict("2."))))
    assert loop.committed == "1. 2."


def test_an_end_verdict_finishes_the_reply_without_asking_the_upstream_for_more():
    for verdict in (Verdict(None, True), Verdict("Enough.", True)):
        loop = loop_of()
        loop.handle(TextArrived(0, "One. Two. Three. F"))
        actions = loop.handle(ReviewDone(0, verdict))
        assert len(of(CloseBranch, actions)) == 1
        assert not of(OpenBranch, actions)
        assert of(Finish, actions)[0].finish_reason == "stop"
        assert loop.done


def test_text_that_waits_is_delivered_before_a_failure_is_told():
    loop = loop_of(Policy(max_resumes=0))
    loop.handle(TextArrived(0, "One. T"))
    error = UpstreamUnreachable("gone")
    assert of(Fail, loop.handle(BranchBroke(0, error))) == []
    actions = loop.handle(ReviewDone(0, KEEP))
    assert texts(actions) == ["One."]
    assert of(Fail, actions) == [Fail(error)]


def test_a_failure_of_the_old_branch_is_void_once_its_text_is_corrected():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. T"))
    loop.handle(BranchBroke(0, UpstreamUnreachable("gone")))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "1.", None)]
    assert not of(Fail, actions)


def test_a_failed_review_ends_the_reply_and_nothing_of_the_sentence_is_delivered():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. T"))
    actions = loop.handle(ReviewBroke(0, ReviewError("no")))
    assert texts(actions) == []
    assert of(Fail, actions)[0].error.code == "review_failed"
    assert len(of(CloseBranch, actions)) == 1
    assert loop.committed == ""


def test_fail_open_delivers_the_original_and_says_so():
    loop = loop_of(Policy(fail_open=True))
    loop.handle(TextArrived(0, "One. T"))
    actions = loop.handle(ReviewBroke(0, ReviewError("no")))
    [delivery] = of(Deliver, actions)
    assert delivery.unit.outcome == "unreviewed"
    assert delivery.unit.error == "no"
    assert loop.cost.unreviewed == 1


def test_a_full_lookahead_stops_the_reading_until_a_verdict_comes():
    loop = loop_of(Policy(lookahead=2))
    loop.handle(TextArrived(0, "One. T"))
    assert loop.wants_text
    loop.handle(TextArrived(0, "wo. T"))
    assert not loop.wants_text
    loop.handle(ReviewDone(0, KEEP))
    assert loop.wants_text


def test_parts_that_are_not_prose_never_overtake_text_that_waits():
    loop = loop_of()
    loop.handle(TextArrived(0, "Let me look"))
    actions = loop.handle(PartArrived(0, {"tool_calls": []}))
    assert of(Deliver, actions) == []
    actions = loop.handle(ReviewDone(0, KEEP))
    assert [(a.text, a.part) for a in of(Deliver, actions)] == [
        ("Let me look", None),
        ("", {"tool_calls": []}),
    ]


def test_parts_waiting_behind_a_sentence_are_bounded():
    loop = loop_of()
    loop.handle(TextArrived(0, "Let me look"))
    sent = 0
    while loop.wants_text:
        loop.handle(PartArrived(0, {"n": sent}))
        sent += 1
        assert sent < 1000
    assert sent > 10


def test_code_passes_in_order_without_review_unless_the_policy_reviews_it():
    text = "Look:\n```py\nx = 1.\n```\nDone. No"
    loop = loop_of()
    actions = loop.handle(TextArrived(0, text))
    assert [a.request.sentence for a in of(StartReview, actions)] == ["Look:", "Done."]
    loop = loop_of(Policy(review_code=True, review_ahead=9))
    actions = loop.handle(TextArrived(0, text))
    assert len(of(StartReview, actions)) > 2


def test_a_continuation_inside_a_fence_knows_that_it_is_code():
    loop = loop_of(Policy(review_code=True, review_ahead=9))
    loop.handle(TextArrived(0, "```py\nx = 1.\ny = 2.\n"))
    loop.handle(ReviewDone(0, KEEP))
    actions = loop.handle(ReviewDone(1, Verdict("x = 3.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "```py\nx = 3.", None)]
    actions = loop.handle(TextArrived(1, "\ny = 2. z = 4.\n```\n"))
    assert [a.request.sentence for a in of(StartReview, actions)] == ["y = 2. z = 4.", "```"]


def test_a_fence_that_a_rewrite_opened_lets_nothing_pass_unreviewed():
    loop = loop_of(Policy(review_ahead=2))
    loop.handle(TextArrived(0, "Say x. More. Text"))
    actions = loop.handle(ReviewDone(0, Verdict("```\nx")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "```\nx", None)]
    actions = loop.handle(TextArrived(1, "\nbad\nworse\n```\nDone. So"))
    assert texts(actions) == []
    assert [a.request.sentence for a in of(StartReview, actions)] == ["bad", "worse"]
    # A second rewrite inside the same block changes nothing in that.
    actions = loop.handle(ReviewDone(2, Verdict("good")))
    assert of(OpenBranch, actions) == [OpenBranch(2, "```\nx\ngood", None)]
    actions = loop.handle(TextArrived(2, "\nbad\n```\nDone. So"))
    assert texts(actions) == []
    for review in (4, 5, 6):
        actions = loop.handle(ReviewDone(review, KEEP))
    assert loop.committed == "```\nx\ngood\nbad\n```\nDone."
    # What the upstream opens itself is code again.
    actions = loop.handle(TextArrived(2, "\n```\ny = 1.\n```\nEnd. Of"))
    actions = loop.handle(ReviewDone(7, KEEP))
    assert texts(actions) == [" So", "\n```", "\ny = 1.", "\n```"]


@pytest.mark.parametrize("loop_kind", [loop_of, shadow_of])
def test_a_part_in_the_middle_of_a_code_block_does_not_turn_its_end_into_a_beginning(loop_kind):
    loop = loop_kind(Policy(review_ahead=9, lookahead=9))
    asked = of(StartReview, loop.handle(TextArrived(0, "Here:\n```py\nx = 1\n")))
    asked += of(StartReview, loop.handle(PartArrived(0, {"annotations": [1]})))
    asked += of(StartReview, loop.handle(TextArrived(0, "y = 2\n```\nBad one. Bad two.")))
    asked += of(StartReview, loop.handle(TextEnded(0, "stop")))
    asked += of(StartReview, loop.handle(BranchEnded(0, "stop")))
    assert [a.request.sentence for a in asked] == ["Here:", "Bad one.", "Bad two."]


def test_a_part_in_the_middle_of_a_line_opens_no_line():
    loop = loop_of(Policy(review_ahead=9, lookahead=9))
    loop.handle(TextArrived(0, "Write it as "))
    loop.handle(PartArrived(0, {"annotations": [1]}))
    actions = loop.handle(TextArrived(0, "```\nBad one. Bad two.\n"))
    assert "passed" not in [d.unit.outcome for d in of(Deliver, actions) if d.unit]


def test_a_deletion_that_lets_the_committed_text_begin_with_a_fence_lets_nothing_pass():
    verdicts = {"Sure!": Verdict(""), "This is wrong.": Verdict("This is right.")}
    loop = loop_of()
    text = "Sure! ```Python prints.\nThis is wrong. And"
    actions = settled(loop, loop.handle(TextArrived(0, text)), lambda s: verdicts.get(s, KEEP))
    assert of(OpenBranch, actions)[0].prefix == "```Python prints.\nThis is right."
    actions = settled(loop, loop.handle(TextArrived(1, "\nBad one.\nBad two.\n")), lambda s: KEEP)
    outcomes = {d.unit.outcome for d in of(Deliver, actions) if d.unit}
    assert outcomes == {"keep"}


def test_a_whole_answer_is_one_also_where_a_part_stands_in_it():
    loop = loop_of(Policy(mode=Mode.WHOLE))
    assert texts(loop.handle(PartArrived(0, {"reasoning": "hm"}))) == [""]
    loop.handle(TextArrived(0, "First half. "))
    assert loop.handle(PartArrived(0, {"annotations": [1]})) == []
    loop.handle(TextArrived(0, "Second half."))
    [started] = of(StartReview, loop.handle(BranchEnded(0, "stop")))
    assert started.request.sentence == "First half. Second half."
    actions = loop.handle(ReviewDone(0, KEEP))
    assert [(d.text, d.part) for d in of(Deliver, actions)] == [
        ("First half. Second half.", None),
        ("", {"annotations": [1]}),
    ]


@pytest.mark.parametrize(
    ("verdict", "delivered"),
    [("Good STOP here.", "Good "), ("STOP", ""), ("A. END ST", "A. END ST")],
)
def test_a_rewrite_ends_at_a_stop_string_of_the_client(verdict, delivered):
    loop = loop_of(stop=("STOP", "end"))
    loop.handle(TextArrived(0, "Bad. Next"))
    actions = loop.handle(ReviewDone(0, Verdict(verdict)))
    assert loop.committed == delivered
    assert bool(of(Finish, actions)) == ("STOP" in verdict)
    assert bool(of(OpenBranch, actions)) == ("STOP" not in verdict)


def test_a_stop_string_across_the_seam_ends_the_reply():
    loop = loop_of(stop=("4. Five",))
    loop.handle(TextArrived(0, "Bad. Next"))
    loop.handle(ReviewDone(0, Verdict("It is 4.")))
    [started] = of(StartReview, loop.handle(TextArrived(1, " Five is more. And")))
    actions = loop.handle(ReviewDone(started.review, KEEP))
    assert loop.committed == "It is 4."
    assert of(Finish, actions)[0].finish_reason == "stop"


@pytest.mark.parametrize("verdict", [KEEP, Verdict("Good STOP here.")])
def test_a_stop_string_that_the_client_wants_to_see_stays(verdict):
    loop = loop_of(stop=("here", "STOP"), stop_included=True)
    loop.handle(TextArrived(0, "Bad. It is STOP"))
    loop.handle(BranchEnded(0, "stop"))
    first = loop.handle(ReviewDone(0, verdict))
    if verdict is KEEP:
        first = loop.handle(ReviewDone(1, KEEP))
    assert loop.committed == ("Bad. It is STOP" if verdict is KEEP else "Good STOP")
    assert of(Finish, first)[0].finish_reason == "stop"


def test_a_reply_that_ended_perhaps_at_a_stop_string_is_not_continued():
    loop = loop_of(stop=("x",))
    loop.handle(TextArrived(0, "Ben h"))
    loop.handle(TextEnded(0, "stop"))
    actions = loop.handle(ReviewDone(0, Verdict("Ben.")))
    assert of(OpenBranch, actions) == []
    assert of(Finish, loop.handle(BranchEnded(0, "stop", Usage(3, 2))))[0].finish_reason == "stop"
    assert loop.committed == "Ben."


def test_a_reply_that_a_filter_ended_is_not_continued_past_it():
    loop = loop_of()
    loop.handle(TextArrived(0, "Bad."))
    loop.handle(BranchEnded(0, "content_filter"))
    actions = loop.handle(ReviewDone(0, Verdict("Good.")))
    assert of(OpenBranch, actions) == []
    assert of(Finish, actions)[0].finish_reason == "content_filter"


def test_usage_is_estimated_where_the_upstream_was_closed_before_it_told_any():
    loop = loop_of(can_continue=False, max_tokens=4)
    loop.handle(TextArrived(0, "Bad one. More"))
    [finish] = of(Finish, loop.handle(ReviewDone(0, Verdict("One two three four five six."))))
    assert finish.finish_reason == "length"
    assert finish.usage is not None
    assert finish.usage.prompt_tokens > 0
    assert 0 < finish.usage.completion_tokens <= 4


def test_lines_before_a_rewrite_count_against_the_limit():
    loop = loop_of(max_tokens=6)
    loop.handle(TextArrived(0, "A.\n\nBad. So"))
    loop.handle(ReviewDone(0, KEEP))
    loop.handle(ReviewDone(1, Verdict("1 2 3 4 5 6 7")))
    assert loop.committed == "A.\n\n1"


def test_what_seems_a_sentence_is_asked_about_before_it_is_sure_to_be_one():
    loop = loop_of()
    [started] = loop.handle(TextArrived(0, "One two."))
    assert started == StartReview(0, Review((Turn("user", "q"),), "", "One two."))
    # Its verdict commits nothing before the sentence is sure.
    assert loop.handle(ReviewDone(0, KEEP)) == []
    assert loop.committed == ""
    actions = loop.handle(TextArrived(0, " Three"))
    assert texts(actions) == ["One two."]
    assert of(StartReview, actions) == []


def test_an_early_review_of_what_was_no_sentence_is_dropped():
    loop = loop_of()
    loop.handle(TextArrived(0, "See foo."))
    assert loop.handle(TextArrived(0, "bar")) == [DropReview(0)]
    assert loop.handle(ReviewDone(0, Verdict("Wrong."))) == []
    actions = loop.handle(TextArrived(0, " now. Then"))
    assert [a.request.sentence for a in of(StartReview, actions)] == ["See foo.bar now."]


def test_an_early_review_in_flight_becomes_the_sentences_own():
    loop = loop_of()
    loop.handle(TextArrived(0, "One two."))
    assert loop.handle(TextArrived(0, " Three")) == []
    assert texts(loop.handle(ReviewDone(0, KEEP))) == ["One two."]


def test_an_early_review_is_void_when_what_it_assumed_before_it_was_rewritten():
    loop = loop_of(can_continue=False)
    loop.handle(TextArrived(0, "One two. Three four."))
    actions = loop.handle(ReviewDone(0, Verdict("1 2.")))
    assert DropReview(1) in actions
    [again] = of(StartReview, actions)
    assert again.request == Review((Turn("user", "q"),), "1 2.", "Three four.")
    actions = loop.handle(TextEnded(0, "stop"))
    assert of(StartReview, actions) == []
    assert texts(loop.handle(ReviewDone(again.review, KEEP))) == [" Three four."]


def test_early_reviews_count_against_those_in_flight_and_can_be_switched_off():
    loop = loop_of(Policy(review_ahead=1))
    loop.handle(TextArrived(0, "One two. "))
    assert loop.handle(TextArrived(0, "Three four.")) == []
    loop = loop_of(Policy(early_review=False))
    assert loop.handle(TextArrived(0, "One two.")) == []


@pytest.mark.parametrize(
    "text", ["Pi is 3.", "See Dr.", "See e.g.", "In the U.S.", "So", "Well,", "Is `a."]
)
def test_what_may_well_go_on_is_not_asked_about_early(text):
    assert loop_of().handle(TextArrived(0, text)) == []


def test_the_last_sentence_need_not_wait_for_the_branchs_end():
    loop = loop_of()
    loop.handle(TextArrived(0, "It is 4."))
    [started] = loop.handle(TextEnded(0, "stop"))
    assert started.request.sentence == "It is 4."
    assert texts(loop.handle(ReviewDone(0, KEEP))) == ["It is 4."]
    [finish] = of(Finish, loop.handle(BranchEnded(0, "stop", Usage(3, 4))))
    assert finish.usage == Usage(3, 4)


def test_trailing_whitespace_is_not_sent_with_the_prefix_nor_delivered_twice(monkeypatch):
    # The splitter gives whitespace to the sentence after it; another one need not.
    monkeypatch.setattr(branch, "splitter_of", lambda policy, committed: WholeAnswer())
    loop = loop_of()
    loop.handle(TextArrived(0, "One.\n\n"))
    loop.handle(BranchEnded(0, "stop"))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert loop.committed == "1.\n\n"
    assert of(OpenBranch, actions) == [OpenBranch(1, "1.", None)]
    for text in ("\n", "\n2."):
        loop.handle(TextArrived(1, text))
    loop.handle(BranchEnded(1, "stop"))
    loop.handle(ReviewDone(1, KEEP))
    assert loop.committed == "1.\n\n2."


def test_a_whole_answer_is_reviewed_once_at_its_end():
    loop = loop_of(Policy(mode=Mode.WHOLE))
    assert loop.handle(TextArrived(0, "One. Two. ")) == []
    actions = loop.handle(BranchEnded(0, "stop"))
    assert of(StartReview, actions)[0].request.scope == "whole"
    actions = loop.handle(ReviewDone(0, Verdict("1. 2.")))
    assert texts(actions) == ["1. 2. "]
    assert of(Finish, actions)[0].finish_reason == "stop"


def test_a_whole_answer_that_is_too_long_fails_instead_of_growing():
    loop = loop_of(Policy(mode=Mode.WHOLE, max_whole_chars=10))
    actions = loop.handle(TextArrived(0, "x" * 11))
    assert of(Fail, actions)


def test_keeping_everything_passes_usage_and_finish_reason_through():
    usage = Usage(7, 5, {"prompt_tokens_details": {"cached_tokens": 3}})
    loop = loop_of()
    loop.handle(PromptMetered(0, 7))
    loop.handle(TextArrived(0, "One. Two"))
    loop.handle(BranchEnded(0, "length", usage))
    loop.handle(ReviewDone(0, KEEP))
    [finish] = of(Finish, loop.handle(ReviewDone(1, KEEP)))
    assert (finish.finish_reason, finish.usage) == ("length", usage)


@pytest.mark.parametrize(
    ("mode", "judged", "expected"),
    [
        (Mode.WHOLE, [Verdict(None, True)], Usage(7, 2, {"n": 1})),
        (Mode.WHOLE, [Verdict("One.", True)], Usage(7, 1, {"n": 1})),
        (Mode.STREAM, [KEEP, Verdict(None, True)], Usage(7, 2, {"n": 1})),
        (Mode.STREAM, [Verdict(None, True)], Usage(7, 1, {"n": 1})),
    ],
)
def test_an_end_verdict_after_the_branch_ended_does_not_lose_its_usage(mode, judged, expected):
    loop = loop_of(Policy(mode=mode))
    loop.handle(TextArrived(0, "One."))
    loop.handle(TextArrived(0, " Two"))
    loop.handle(BranchEnded(0, "stop", Usage(7, 2, {"n": 1})))
    for review, verdict in enumerate(judged):
        actions = loop.handle(ReviewDone(review, verdict))
    [finish] = of(Finish, actions)
    assert finish.usage == expected


def test_usage_after_a_correction_is_what_was_delivered_by_the_upstreams_own_counts():
    loop = loop_of()
    loop.handle(PromptMetered(0, 10))
    for text in ("One", ".", " Two", ".", " Three", "."):
        loop.handle(TextArrived(0, text))
    loop.handle(ReviewDone(0, KEEP))
    loop.handle(ReviewDone(1, Verdict("a b c d.")))
    loop.handle(PromptMetered(1, 17))  # the prefix has seven of the upstream's tokens
    [review] = of(StartReview, loop.handle(TextArrived(1, " End.")))
    loop.handle(BranchEnded(1, "stop", Usage(17, 3)))
    [finish] = of(Finish, loop.handle(ReviewDone(review.review, KEEP)))
    assert finish.usage == Usage(10, 10)
    assert finish.cost.branches == 2
    assert finish.cost.resent_prefix_tokens == 7
    assert finish.cost.discarded_tokens == 2


def test_a_continuation_may_only_write_the_tokens_that_are_left():
    loop = loop_of(max_tokens=10)
    for text in ("One", ".", " Two", "."):
        loop.handle(TextArrived(0, text))
    loop.handle(TextArrived(0, " T"))
    loop.handle(ReviewDone(0, KEEP))
    [opened] = of(OpenBranch, loop.handle(ReviewDone(1, Verdict("2 2."))))
    assert 0 < opened.max_tokens < 10


def test_reasoning_counts_against_the_limit_and_in_the_usage():
    loop = loop_of(max_tokens=100)
    loop.handle(PromptMetered(0, 10))
    for _ in range(60):
        loop.handle(PartArrived(0, {"reasoning": "Hm. "}, 1))
    for text in ("One", ".", " Two", ".", " Three"):
        loop.handle(TextArrived(0, text))
    loop.handle(ReviewDone(0, KEEP))
    [opened] = of(OpenBranch, loop.handle(ReviewDone(1, Verdict("2."))))
    assert 30 < opened.max_tokens <= 40
    loop.handle(PromptMetered(1, 14))
    loop.handle(TextArrived(1, " 3."))
    loop.handle(BranchEnded(1, "stop", Usage(14, 2)))
    [finish] = of(Finish, loop.handle(ReviewDone(2, KEEP)))
    assert finish.usage == Usage(10, 60 + 4 + 2)


def test_a_replacement_longer_than_what_is_left_is_cut_at_a_word_and_ends_with_length():
    loop = loop_of(max_tokens=4)
    loop.handle(TextArrived(0, "Once upon.", 3))
    loop.handle(TextArrived(0, " T"))
    actions = loop.handle(ReviewDone(0, Verdict("word " * 40)))
    assert of(Finish, actions)[0].finish_reason == "length"
    assert loop.committed.count("word") == 2
    assert not of(OpenBranch, actions)


@pytest.mark.parametrize("rest", ["\n```\na b c d e f g h", " A b c d e f g h."])
def test_what_is_not_reviewed_counts_against_the_limit_behind_a_longer_text(rest):
    loop = loop_of(Policy(fail_open=True, review_ahead=1), can_continue=False, max_tokens=16)
    for text in ("One.", *rest.replace(" ", "| ").split("|")):
        loop.handle(TextArrived(0, text))
    loop.handle(BranchEnded(0, "stop", Usage(5, 12)))
    actions = loop.handle(ReviewDone(0, Verdict("w w w w w w w w w w.")))
    if not loop.done:
        actions += loop.handle(ReviewBroke(1, ReviewError("no")))
    assert of(Finish, actions)[0].finish_reason == "length"
    assert len(loop.committed.replace("```", "").split()) <= 16
    assert not loop.committed.endswith(("h", "."))


def test_guessed_counts_do_not_cut_the_first_branch_short():
    loop = loop_of(max_tokens=3)
    for letter in "a b c d":
        assert not of(CloseBranch, loop.handle(TextArrived(0, letter)))


def test_an_upstream_that_ignores_the_limit_is_stopped_at_it():
    loop = loop_of(max_tokens=3)
    loop.handle(PromptMetered(0, 5))
    loop.handle(TextArrived(0, "a", 2))
    loop.handle(TextArrived(0, " b", 1))
    actions = loop.handle(TextArrived(0, " c", 1))
    assert len(of(CloseBranch, actions)) == 1
    actions = loop.handle(ReviewDone(0, KEEP))
    assert loop.committed == "a b"
    assert of(Finish, actions)[0].finish_reason == "length"


def test_abandoning_closes_what_is_open_and_later_events_change_nothing():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. T"))
    actions = loop.abandon()
    assert of(DropReview, actions) == [DropReview(0)]
    assert len(of(CloseBranch, actions)) == 1
    assert loop.abandon() == []
    assert loop.handle(ReviewDone(0, KEEP)) == []
    assert loop.handle(TextArrived(0, "Two. ")) == []
    assert loop.committed == ""


def test_events_of_things_that_never_were_are_bugs_and_raise():
    loop = loop_of()
    with pytest.raises(IllegalEvent):
        loop.handle(TextArrived(1, "x"))
    with pytest.raises(IllegalEvent):
        loop.handle(ReviewDone(0, KEEP))
    with pytest.raises(IllegalEvent):
        loop.start()
