"""What is counted as time that aligning added to a reply."""

from stream_aligner_proxy.core.added_time import AddedTime


def test_a_sentence_that_is_kept_while_the_upstream_writes_adds_nothing():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.arrived(0, 10, 5.0)
    added.delivered(0, 10, 4.0)
    added.delivered(0, 20, 5.5)
    added.ended(0, 6.0)
    assert added.seconds == 0


def test_what_the_last_verdict_took_after_the_end_of_the_upstream_is_added():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.ended(0, 2.0)
    added.delivered(0, 10, 5.0)
    assert added.seconds == 3


def test_a_reply_that_the_aligner_ended_waited_from_the_arrival_of_its_last_sentence():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.arrived(0, 10, 2.0)
    added.delivered(0, 10, 4.0)
    assert added.seconds == 3


def test_a_rewritten_sentence_costs_the_time_from_its_arrival_to_the_text_that_continues_it():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.arrived(0, 10, 2.0)  # the last of it
    added.arrived(0, 10, 3.0)  # written in vain
    added.delivered(0, 20, 4.0)
    added.opened(1, 4.5, after_a_break=False)
    added.arrived(1, 5, 7.0)
    added.ended(1, 8.0)
    added.delivered(1, 5, 8.0)
    assert added.seconds == 5


def test_a_correction_with_nothing_to_add_ends_with_the_branch_that_says_so():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.ended(0, 1.5)
    added.delivered(0, 10, 2.0)
    added.opened(1, 2.0, after_a_break=False)
    added.ended(1, 4.0)
    assert added.seconds == 3


def test_no_time_counts_twice():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.held(2.0)
    added.arrived(0, 10, 3.0)
    added.delivered(0, 10, 4.0)  # rewritten: the two seconds lie behind its arrival
    added.opened(1, 4.0, after_a_break=False)
    added.arrived(1, 5, 5.0)
    added.ended(1, 5.0)
    added.delivered(1, 5, 5.0)
    assert added.seconds == 4
    kept = AddedTime()
    kept.arrived(0, 10, 1.0)
    kept.held(2.0)
    kept.arrived(0, 10, 3.0)
    kept.ended(0, 3.0)
    kept.delivered(0, 20, 3.5)
    assert kept.seconds == 2.5


def test_going_on_after_a_break_is_not_the_aligners_doing():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.delivered(0, 10, 1.0)
    added.opened(1, 2.0, after_a_break=True)
    added.arrived(1, 5, 9.0)
    added.ended(1, 9.0)
    added.delivered(1, 5, 9.5)
    assert added.seconds == 0.5


def test_a_continuation_that_is_refused_costs_the_time_that_it_took():
    added = AddedTime()
    added.arrived(0, 10, 1.0)
    added.delivered(0, 10, 3.0)
    added.opened(1, 3.0, after_a_break=False)
    added.went_back(0, 5.0)
    added.arrived(0, 10, 6.0)
    added.ended(0, 6.0)
    added.delivered(0, 20, 6.0)
    assert added.seconds == 2
