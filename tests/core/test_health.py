"""The circuit breaker, without anything that breaks."""

from stream_aligner_proxy.core.health import Health


class Seen:
    """A `HealthWatcher`."""

    def __init__(self) -> None:
        self.openings = self.closings = self.rejections = 0

    def opened(self) -> None:
        self.openings += 1

    def closed(self) -> None:
        self.closings += 1

    def rejected(self) -> None:
        self.rejections += 1


def opened(health: Health) -> Health:
    for _ in range(3):
        health.enter().failed()
    assert health.state == "open"
    return health


def test_only_failures_in_a_row_open_it():
    health = Health(threshold=3)
    for _ in range(5):
        health.enter().failed()
        health.enter().failed()
        health.enter().succeeded()
    assert health.state == "ok"
    opened(health)


def test_a_pass_that_is_given_back_without_a_word_says_nothing():
    health = Health(threshold=2)
    health.enter().failed()
    health.enter().leave()
    assert health.state == "ok"
    health.enter().failed()
    assert health.state == "open"


def test_open_it_gives_no_pass_but_to_those_who_must_have_one():
    seen = Seen()
    health = opened(Health(watcher=seen))
    assert not health.admits
    assert health.enter() is None
    assert health.enter(always=True) is not None
    assert (seen.openings, seen.rejections) == (1, 1)


def test_half_open_it_lets_so_many_try_and_all_once_one_has_an_answer():
    health = opened(Health(trials=2))
    health.answered()
    first, second = health.enter(), health.enter()
    assert health.enter() is None
    second.leave()
    assert health.admits
    first.begun()
    assert all(health.enter() for _ in range(5))
    assert health.state == "half-open"
    first.succeeded()
    assert health.state == "ok"


def test_a_failure_after_the_answer_began_opens_it_again_and_doubles_the_pause():
    health = opened(Health(shortest_pause=1, longest_pause=3))
    for pause in (2, 3, 3):
        health.answered()
        trial = health.enter()
        trial.begun()
        trial.failed()
        assert (health.state, health.pause) == ("open", pause)
    health.answered()
    health.enter().succeeded()
    assert (health.state, health.pause) == ("ok", 1)


def test_what_was_begun_before_it_opened_is_not_heard():
    seen = Seen()
    health = Health(watcher=seen)
    old, older = health.enter(), health.enter()
    opened(health)
    old.succeeded()
    assert health.state == "open"
    health.answered()
    old.failed()
    assert health.state == "half-open"
    trial = health.enter()
    older.leave()
    assert not health.admits
    trial.succeeded()
    assert (seen.openings, seen.closings) == (1, 1)


def test_who_asks_all_the_same_and_gets_an_answer_lets_the_others_in():
    health = opened(Health())
    asked = health.enter(always=True)
    asked.begun()
    assert health.admits
    asked.succeeded()
    assert health.state == "ok"


def test_not_enforced_it_only_gives_advice():
    health = opened(Health(enforced=False))
    assert health.admits
    assert not health.usable
    health.enter().succeeded()
    assert health.usable


def test_a_part_that_is_let_go_of_is_not_shown_as_open():
    seen = Seen()
    opened(Health(watcher=seen)).close()
    assert (seen.openings, seen.closings) == (1, 1)


def test_that_it_answers_again_is_told_before_anybody_else_asks():
    seen = Seen()
    health = opened(Health(watcher=seen))
    health.answered()
    assert seen.closings == 0  # a ping is no answer
    trial = health.enter()
    trial.begun()
    assert (health.state, seen.closings) == ("half-open", 1)
    trial.failed()
    assert (health.state, seen.openings) == ("open", 2)
