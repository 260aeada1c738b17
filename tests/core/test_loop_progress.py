"""Verdicts that are told while they are still being written, and hints at reviews to come."""

import pytest

from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.events import (
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Deliver,
    DropReview,
    Expect,
    Fail,
    Finish,
    OpenBranch,
    PromptMetered,
    ReviewBroke,
    ReviewDone,
    ReviewProgress,
    StartReview,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Review, Usage, Verdict
from stream_aligner_proxy.core.shadow import ShadowLoop
from tests.core.scripts import CONVERSATION, KEEP, loop_of, of, texts


def test_what_is_told_of_the_head_is_delivered_at_once_and_the_rest_with_its_record():
    loop = loop_of()
    loop.handle(TextArrived(0, "\n\nOne two three. F"))
    first = loop.handle(ReviewProgress(0, "One"))
    second = loop.handle(ReviewProgress(0, "One 2"))
    last = loop.handle(ReviewDone(0, Verdict("One 2 3.")))
    assert of(Deliver, first) == [Deliver("\n\nOne")]
    assert of(Deliver, second) == [Deliver(" 2")]
    [delivery] = of(Deliver, last)
    assert (delivery.text, delivery.unit.text) == (" 3.", "\n\nOne 2 3.")
    assert (delivery.unit.outcome, delivery.unit.index) == ("replace", 0)
    assert loop.committed == "\n\nOne 2 3."


def test_a_keep_after_progress_continues_the_sentence_byte_for_byte():
    loop = loop_of()
    loop.handle(TextArrived(0, "\tOne  two three.  F"))
    assert texts(loop.handle(ReviewProgress(0, "One  tw"))) == ["\tOne  tw"]
    [delivery] = of(Deliver, loop.handle(ReviewDone(0, KEEP)))
    assert (delivery.text, delivery.unit.outcome) == ("o three.", "keep")
    assert loop.committed == "\tOne  two three."


def test_what_is_told_of_a_later_sentence_waits_until_it_is_the_head():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. T"))
    assert of(Deliver, loop.handle(ReviewProgress(1, "Tw"))) == []
    assert texts(loop.handle(ReviewDone(0, KEEP))) == ["One.", " Tw"]
    assert texts(loop.handle(ReviewDone(1, KEEP))) == ["o."]


def test_what_is_told_of_an_early_review_counts_when_the_sentence_is_sure():
    loop = loop_of()
    loop.handle(TextArrived(0, "One two."))
    assert loop.handle(ReviewProgress(0, "One")) == []
    assert texts(loop.handle(TextArrived(0, " Three"))) == ["One"]
    assert texts(loop.handle(ReviewDone(0, KEEP))) == [" two."]


def test_what_is_told_of_a_whole_answer_is_delivered_before_its_verdict():
    loop = loop_of(Policy(mode=Mode.WHOLE))
    loop.handle(TextArrived(0, "One. Two."))
    loop.handle(BranchEnded(0, "stop"))
    assert texts(loop.handle(ReviewProgress(0, "1. T"))) == ["1. T"]
    actions = loop.handle(ReviewDone(0, Verdict("1. Two.")))
    assert texts(actions) == ["wo."]
    assert of(Finish, actions)


def test_a_told_rewrite_closes_the_branch_at_once_and_opens_the_next_at_the_verdict():
    loop = loop_of()
    for text in ("One.", " Two.", " Three.", " Fo"):
        loop.handle(TextArrived(0, text))
    assert of(CloseBranch, loop.handle(ReviewProgress(0, "On"))) == []
    actions = loop.handle(ReviewProgress(0, "Only"))
    assert of(CloseBranch, actions) == [CloseBranch(0)]
    assert {drop.review for drop in of(DropReview, actions)} == {1, 2}
    assert of(OpenBranch, actions) == []
    assert loop.handle(TextArrived(0, "ur. Five.")) == []
    actions = loop.handle(ReviewDone(0, Verdict("Only.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "Only.", None)]
    assert of(CloseBranch, actions) == []
    assert loop.cost.discarded_tokens == 3


@pytest.mark.parametrize(
    ("policy", "can_continue"),
    [
        (Policy(restart_on="material"), True),
        (Policy(max_continuations=0), True),
        (Policy(), False),
    ],
)
def test_where_the_branch_may_stay_a_told_rewrite_does_not_close_it(policy, can_continue):
    loop = loop_of(policy, can_continue=can_continue)
    loop.handle(TextArrived(0, "One. Two. Three"))
    assert of(CloseBranch, loop.handle(ReviewProgress(0, "Only"))) == []


def test_an_end_after_a_told_rewrite_finishes_without_another_branch():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Three"))
    loop.handle(ReviewProgress(0, "Enough"))
    actions = loop.handle(ReviewDone(0, Verdict("Enough.", True)))
    assert texts(actions) == ["."]
    assert of(OpenBranch, actions) + of(CloseBranch, actions) == []
    assert of(Finish, actions)[0].finish_reason == "stop"


def test_the_usage_of_a_branch_that_had_ended_is_not_lost_by_a_told_rewrite():
    loop = loop_of()
    loop.handle(TextArrived(0, "One."))
    loop.handle(TextArrived(0, " Two."))
    loop.handle(BranchEnded(0, "stop", Usage(7, 2)))
    loop.handle(ReviewProgress(0, "Enough"))
    [finish] = of(Finish, loop.handle(ReviewDone(0, Verdict("Enough.", True))))
    assert finish.usage is not None
    assert finish.usage.prompt_tokens == 7


def test_reviews_behind_a_told_rewrite_are_dropped_also_where_the_branch_had_ended():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Three."))
    loop.handle(BranchEnded(0, "stop"))
    actions = loop.handle(ReviewProgress(0, "Only"))
    assert {drop.review for drop in of(DropReview, actions)} == {1, 2}
    assert of(StartReview, loop.handle(ReviewProgress(0, "Only so"))) == []
    actions = loop.handle(ReviewDone(0, Verdict("Only so.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "Only so.", None)]


def test_a_branch_that_breaks_behind_a_told_rewrite_is_continued_all_the_same():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two"))
    loop.handle(BranchBroke(0, ReviewError("x")))
    loop.handle(ReviewProgress(0, "Only"))
    actions = loop.handle(ReviewDone(0, Verdict("Only.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "Only.", None)]
    assert of(Fail, actions) == []


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_review_that_fails_after_a_part_is_out_ends_the_reply(fail_open):
    loop = loop_of(Policy(fail_open=fail_open))
    loop.handle(TextArrived(0, "One two. T"))
    loop.handle(ReviewProgress(0, "One"))
    actions = loop.handle(ReviewBroke(0, ReviewError("no")))
    assert of(Fail, actions)[0].error.code == "review_failed"
    assert len(of(CloseBranch, actions)) == 1
    assert loop.committed == "One"


@pytest.mark.parametrize("verdict", [Verdict("Two."), Verdict(""), Verdict("On")])
def test_a_verdict_that_takes_back_what_was_told_ends_the_reply_even_when_failing_open(verdict):
    loop = loop_of(Policy(fail_open=True))
    loop.handle(TextArrived(0, "One two. T"))
    loop.handle(ReviewProgress(0, "One"))
    actions = loop.handle(ReviewDone(0, verdict))
    assert of(Fail, actions)[0].error.code == "review_failed"
    assert of(Deliver, actions) == []


def test_a_keep_after_a_rewrite_was_told_ends_the_reply():
    loop = loop_of()
    loop.handle(TextArrived(0, "One two. T"))
    loop.handle(ReviewProgress(0, "Only"))
    assert of(Fail, loop.handle(ReviewDone(0, KEEP)))


def test_progress_that_takes_back_what_was_told_is_a_failed_review():
    loop = loop_of()
    loop.handle(TextArrived(0, "One two. T"))
    loop.handle(ReviewProgress(0, "One"))
    actions = loop.handle(ReviewProgress(0, "Two"))
    assert of(DropReview, actions) == [DropReview(0)]
    assert of(Fail, actions)


def test_with_stop_strings_nothing_is_delivered_before_the_verdict():
    loop = loop_of(stop=("x",))
    loop.handle(TextArrived(0, "One two. T"))
    assert of(Deliver, loop.handle(ReviewProgress(0, "Only"))) == []
    assert texts(loop.handle(ReviewDone(0, Verdict("Only two.")))) == ["Only two."]


def test_what_is_told_of_a_later_sentence_also_closes_a_branch_that_no_verdict_can_save():
    loop = loop_of()
    for text in ("One.", " Two.", " Three.", " Fo"):
        loop.handle(TextArrived(0, text))
    actions = loop.handle(ReviewProgress(1, "Not"))
    assert of(CloseBranch, actions) == [CloseBranch(0)]
    assert of(DropReview, actions) == [DropReview(2)]
    assert of(OpenBranch, loop.handle(ReviewDone(0, KEEP))) == []
    actions = loop.handle(ReviewDone(1, Verdict("Not two.")))
    assert of(OpenBranch, actions) == [OpenBranch(1, "One. Not two.", None)]
    assert loop.cost.discarded_tokens == 2


def test_so_does_the_verdict_on_a_later_sentence():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Three. Fo"))
    assert of(CloseBranch, loop.handle(ReviewDone(1, Verdict("Two.")))) == []  # the same text
    actions = loop.handle(ReviewDone(2, Verdict("3.")))
    assert of(CloseBranch, actions) == [CloseBranch(0)]
    actions = loop.handle(ReviewDone(0, KEEP))
    assert texts(actions) == ["One.", " Two.", " 3."]
    assert of(OpenBranch, actions) == [OpenBranch(1, "One. Two. 3.", None)]


def test_where_a_deletion_saves_what_was_to_be_rewritten_the_upstream_is_asked_once_more():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Three. Fo"))
    loop.handle(ReviewProgress(1, "Not"))
    [again] = of(StartReview, loop.handle(ReviewDone(0, Verdict(""))))
    assert again.request.sentence == "Two."
    actions = loop.handle(ReviewDone(again.review, KEEP))
    assert texts(actions) == ["Two."]
    assert of(OpenBranch, actions) == [OpenBranch(1, "Two.", None)]
    assert loop.cost.branches == 2


def test_where_the_review_of_it_fails_open_the_upstream_is_asked_once_more():
    loop = loop_of(Policy(fail_open=True))
    loop.handle(TextArrived(0, "One. Two. T"))
    loop.handle(ReviewProgress(1, "Not"))
    loop.handle(ReviewDone(0, KEEP))  # the head now is out in part
    assert of(Fail, loop.handle(ReviewBroke(1, ReviewError("no"))))
    loop = loop_of(Policy(fail_open=True))
    loop.handle(TextArrived(0, "One. Two. T"))
    loop.handle(ReviewProgress(1, "Not"))
    loop.handle(ReviewBroke(1, ReviewError("no")))
    actions = loop.handle(ReviewDone(0, KEEP))
    assert [d.unit.outcome for d in of(Deliver, actions)] == ["keep", "unreviewed"]
    assert of(OpenBranch, actions) == [OpenBranch(1, "One. Two.", None)]


def test_within_a_limit_only_whole_words_that_are_sure_to_fit_are_delivered_early():
    loop = loop_of(max_tokens=4)
    loop.handle(TextArrived(0, "Once upon.", 3))
    loop.handle(TextArrived(0, " T"))
    assert of(Deliver, loop.handle(ReviewProgress(0, "one tw"))) == [Deliver("one")]
    assert texts(loop.handle(ReviewProgress(0, "one two three four five"))) == []
    assert texts(loop.handle(ReviewProgress(0, "one two three four five six"))) == []
    actions = loop.handle(ReviewDone(0, Verdict("one two three four five six.")))
    assert of(Finish, actions)[0].finish_reason == "length"
    assert loop.committed == "one two"


def test_usage_is_the_same_whether_a_rewrite_was_told_or_not():
    def usage(tells: bool) -> Usage | None:
        loop = loop_of()
        loop.handle(PromptMetered(0, 10))
        for text in ("One", ".", " Two", "."):
            loop.handle(TextArrived(0, text))
        loop.handle(TextEnded(0, "stop"))
        if tells:
            loop.handle(ReviewProgress(0, "a b"))
        loop.handle(ReviewDone(0, Verdict("a b c d.")))
        loop.handle(PromptMetered(1, 15))
        [review] = of(StartReview, loop.handle(TextArrived(1, " End.")))
        loop.handle(BranchEnded(1, "stop", Usage(15, 2)))
        [finish] = of(Finish, loop.handle(ReviewDone(review.review, KEEP)))
        return finish.usage

    assert usage(tells=True) == usage(tells=False) == Usage(10, 7)


def test_shadow_mode_ignores_what_is_told():
    loop = ShadowLoop(ChatRequest("m", {}, CONVERSATION), Policy())
    loop.start()
    loop.handle(TextArrived(0, "One two. T"))
    assert loop.handle(ReviewProgress(0, "Only")) == []


# --- hints ----------------------------------------------------------------------------------


def expected(actions) -> list[tuple[str, str]]:
    return [(e.request.committed, e.request.sentence) for e in of(Expect, actions)]


def typed(loop, text: str, branch: int = 0) -> list:
    return [action for char in text for action in loop.handle(TextArrived(branch, char))]


def test_a_branch_that_opens_lets_the_aligner_read_what_its_first_review_will_hold():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. T"))
    actions = loop.handle(ReviewDone(0, Verdict("1.")))
    assert expected(actions) == [("1.", "")]
    assert of(Expect, actions)[0].request == Review(CONVERSATION, "1.", "")


def test_a_sentence_that_grows_is_hinted_at_every_48_characters_with_what_waits_before_it():
    loop = loop_of()
    loop.handle(TextArrived(0, "Short one."))
    hints = expected(typed(loop, " Word" + " word" * 29))
    assert [committed for committed, _ in hints] == ["Short one."] * 3
    assert [len(sentence) for _, sentence in hints] == [47, 94, 143]
    assert all(sentence == sentence.strip() for _, sentence in hints)


def test_code_that_passes_is_not_hinted_at():
    loop = loop_of()
    assert expected(typed(loop, "```py\n" + "word = 1\n" * 30)) == []
    loop = loop_of(Policy(review_code=True))
    assert expected(typed(loop, "```py\n" + "x" * 100))


def test_nothing_is_hinted_at_while_a_review_of_it_runs_or_what_waits_is_rewritten():
    loop = loop_of()
    assert expected(loop.handle(TextArrived(0, "word " * 12 + "word."))) == []  # asked already
    loop = loop_of(can_continue=False)
    loop.handle(TextArrived(0, "One. Two. T"))
    loop.handle(ReviewDone(1, Verdict("2.")))
    assert expected(typed(loop, "hree " * 30)) == []


def test_a_whole_answer_is_hinted_at_as_it_grows_and_all_hints_are_linear_in_its_length():
    loop = loop_of(Policy(mode=Mode.WHOLE))
    text = "Word word. " * 4000
    hints = expected([a for i in range(0, len(text), 4) for a in typed_at(loop, text[i : i + 4])])
    assert hints[0] == ("", text[:48].strip())
    assert len(text) - len(hints[-1][1]) < len(text) / 15
    assert sum(len(sentence) for _, sentence in hints) < 18 * len(text)


def typed_at(loop, piece: str) -> list:
    return loop.handle(TextArrived(0, piece))
