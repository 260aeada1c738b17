"""The loop under every order of events: rules 2, 3, 4, 5, 6 and 7, by simulation.

`Simulation` checks after each step that the committed text is what was delivered, that it only
grew, that every delivered sentence was judged for exactly the place it is in, and that branches
are opened from it and closed once. The tests here drive it through random worlds.
"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    ReviewError,
    UpstreamRejected,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.events import (
    BranchBroke,
    Fail,
    Finish,
    PartArrived,
    ReviewBroke,
    ReviewDone,
    ReviewProgress,
    TextArrived,
)
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Review, Turn, Verdict
from tests.core.simulation import Simulation

WORDS = st.sampled_from(["one", "two", "Three", "3.5", "e.g.", "I", "\n\n- x", "```\ncode.\n```\n"])
SENTENCE = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)
ENDS = st.sampled_from([". ", "! ", "? ", ".\n\n", ".", "。", "\n", " "])
TEXT = st.lists(st.tuples(SENTENCE, ENDS).map("".join), max_size=6).map("".join)
CHUNKS = TEXT.flatmap(
    lambda text: st.lists(st.integers(0, len(text)), max_size=12).map(
        lambda cuts: [
            text[a:b]
            for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True)
            if a != b
        ]
    )
)
VERDICT = st.one_of(
    st.just(Verdict()),
    st.just(Verdict()),
    st.builds(
        Verdict,
        st.sampled_from(["Fixed.", "Two. Sentences.", " padded ", "one", "one two. And ", ""]),
        st.just(False),
    ),
    st.builds(Verdict, st.sampled_from([None, "Enough."]), st.just(True)),
)
POLICY = st.builds(
    Policy,
    mode=st.sampled_from([Mode.STREAM, Mode.STREAM, Mode.WHOLE]),
    lookahead=st.integers(1, 5),
    review_ahead=st.integers(1, 4),
    adaptive=st.booleans(),
    restart_on=st.sampled_from(["any", "any", "material"]),
    material_edit=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    max_continuations=st.integers(0, 4),
    max_reviews=st.sampled_from([None, None, 0, 1, 3]),
    max_resumes=st.integers(0, 2),
    merge_below=st.sampled_from([0, 0, 5, 20]),
    review_code=st.booleans(),
    early_review=st.booleans(),
)


def simulate(data: st.DataObject, policy: Policy, **kw) -> Simulation:
    return Simulation(
        policy,
        write=lambda prefix: list(data.draw(CHUNKS)),
        judge=lambda review: data.draw(VERDICT),
        can_continue=data.draw(st.booleans()),
        sure=data.draw(st.booleans()),
        tell_more=data.draw(st.sampled_from([None, lambda left: 0, lambda left: left // 2])),
        **kw,
    )


@given(st.data(), POLICY)
@settings(max_examples=400, deadline=None)
def test_in_every_order_of_events_the_reply_ends_and_the_rules_hold(data, policy):
    simulation = simulate(data, policy)
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert isinstance(simulation.outcome, Finish)
    assert not simulation.running
    assert sorted(simulation.closed) == list(range(simulation.outcome.cost.branches))
    assert simulation.outcome.cost.branches <= policy.max_continuations + 1


@given(st.data(), POLICY, st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_events_of_closed_branches_and_dropped_reviews_change_nothing(data, policy, steps):
    simulation = simulate(data, policy)
    for _ in range(steps):
        if simulation.outcome is not None:
            break
        moves = simulation.moves()
        moves[data.draw(st.integers(0, len(moves) - 1))]()
    before = (simulation.delivered, simulation.loop.wants_text, dict(simulation.running))
    for branch in simulation.closed:
        assert simulation.loop.handle(TextArrived(branch, "Late. Text. ")) == []
        assert simulation.loop.handle(PartArrived(branch, {"late": 1})) == []
        assert simulation.loop.handle(BranchBroke(branch, UpstreamUnreachable("late"))) == []
    for review in set(simulation.asked) - set(simulation.reviews):
        assert simulation.loop.handle(ReviewDone(review, Verdict("Late."))) == []
    assert before == (simulation.delivered, simulation.loop.wants_text, dict(simulation.running))


@given(st.data(), POLICY, st.integers(0, 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_whenever_it_is_abandoned_or_fails_as_many_branches_are_closed_as_opened(
    data, policy, steps, break_branch
):
    simulation = simulate(data, policy)
    for _ in range(steps):
        if simulation.outcome is not None:
            break
        moves = simulation.moves()
        moves[data.draw(st.integers(0, len(moves) - 1))]()
    if simulation.outcome is None and break_branch and simulation.running:
        while simulation.outcome is None:
            if simulation.moving is not None:
                simulation.send(BranchBroke(simulation.moving, UpstreamUnreachable("x")))
                continue
            review = min(simulation.reviews)
            del simulation.reviews[review]
            simulation.send(ReviewBroke(review, ReviewError("x")))
        assert isinstance(simulation.outcome, Fail)
    elif simulation.outcome is None:
        simulation.perform(simulation.loop.abandon())
    assert not simulation.running
    assert not simulation.reviews
    assert sorted(simulation.closed) == list(range(len(simulation.prefixes)))


class Faulty(Simulation):
    """Reviews may fail, and the aligner may take back what it told; a branch may break."""

    def moves(self):
        moves = super().moves()
        for review in sorted(self.reviews):
            moves.append(lambda review=review: self.fail_review(review))
            moves.append(lambda review=review: self.take_back(review))
        if self.moving is not None:
            for error in (UpstreamUnreachable("x"), UpstreamRejected("x", status=400)):
                moves.append(lambda error=error: self.send(BranchBroke(self.moving, error)))
            if not self.sure:
                failed = ContinuationFailed("x")
                moves.append(lambda: self.send(BranchBroke(self.moving, failed)))
        return moves

    def fail_review(self, review: int) -> None:
        del self.reviews[review]
        self.send(ReviewBroke(review, ReviewError("x")))

    def take_back(self, review: int) -> None:
        self.told_of[review] = "~"
        self.send(ReviewProgress(review, "~"))


@given(st.data(), POLICY, st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_fails_the_reply_ends_with_all_closed_and_nothing_untold_delivered(
    data, policy, fail_open
):
    simulation = Faulty(
        replace(policy, fail_open=fail_open),
        write=lambda prefix: list(data.draw(CHUNKS)),
        judge=lambda review: data.draw(VERDICT),
        can_continue=data.draw(st.booleans()),
        sure=data.draw(st.booleans()),
        tell_more=data.draw(st.sampled_from([None, lambda left: 0, lambda left: left // 2])),
    )
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert not simulation.running
    assert not simulation.reviews
    assert sorted(simulation.closed) == list(range(len(simulation.prefixes)))
    if isinstance(simulation.outcome, Finish):
        assert not simulation.partial


@given(st.data(), POLICY)
@settings(max_examples=200, deadline=None)
def test_hints_are_about_the_text_that_is_committed_if_what_waits_is_kept(data, policy):
    written: list[str] = []

    def write(prefix: str) -> list[str]:
        written[:] = [prefix]
        return list("".join(data.draw(CHUNKS)))

    class Watched(Simulation):
        def send(self, event) -> None:
            if isinstance(event, TextArrived):
                written.append(event.text)
            before = len(self.expected)
            super().send(event)
            text = "".join(written)
            for hint in self.expected[before:]:
                assert self.policy.mode is Mode.WHOLE or hint.committed.startswith(self.delivered)
                # With all kept, that is what the branch was given and wrote.
                if all(verdict.kept for verdict in self.verdicts.values()):
                    assert text.startswith(hint.committed)
                    assert text[len(hint.committed) :].strip().startswith(hint.sentence)

    simulation = Watched(policy, write, lambda review: data.draw(VERDICT))
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))


@given(st.data(), POLICY, st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_exactly_the_first_sentences_are_reviewed(data, policy, most):
    plain = st.lists(st.sampled_from(["One. ", "Two two! ", "Three\n", "Then 3.5 of it? "]))
    simulation = Simulation(
        replace(policy, max_reviews=most, mode=Mode.STREAM),
        write=lambda prefix: data.draw(plain),
        judge=lambda review: data.draw(VERDICT),
    )
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))
    units = [d.unit for d in simulation.deliveries if d.unit and d.unit.original.strip()]
    assert all((unit.outcome != "passed") == (n < most) for n, unit in enumerate(units))


@given(CHUNKS, st.data(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_an_aligner_that_keeps_everything_is_transparent(chunks, data, lookahead):
    simulation = Simulation(
        Policy(
            lookahead=lookahead,
            mode=data.draw(st.sampled_from([Mode.STREAM, Mode.WHOLE])),
            merge_below=data.draw(st.sampled_from([0, 15])),
            max_reviews=data.draw(st.sampled_from([None, 2])),
        ),
        write=lambda prefix: list(chunks),
        judge=lambda review: Verdict(),
        tell_more=data.draw(st.sampled_from([None, lambda left: 0])),
    )
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert simulation.delivered == "".join(chunks)
    assert len(simulation.closed) == 1


@given(CHUNKS, st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_what_waits_for_a_verdict_is_bounded_by_the_lookahead(chunks, lookahead):
    policy = Policy(lookahead=lookahead, review_ahead=1)
    simulation = Simulation(policy, lambda prefix: list("".join(chunks)), lambda review: Verdict())
    while simulation.running and simulation.loop.wants_text:
        simulation.feed()  # one character at a time, and never a verdict
    # The last character may end two: a unit and whitespace.
    assert simulation.loop._line.length <= lookahead + 1
    assert len(simulation.reviews) <= 1


@given(st.data(), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_no_more_tokens_are_delivered_than_the_client_asked_for(data, limit):
    """One token is one word here, in the upstream, in the estimate's worst case, and below."""

    def write(prefix: str) -> list[str]:
        left = simulation_limits[-1] if simulation_limits else limit
        count = data.draw(st.integers(0, 8))
        words = [data.draw(st.sampled_from(["word ", "stop. "])) for _ in range(count)]
        return words[:left]

    simulation_limits: list[int] = []
    request = ChatRequest("m", {}, (Turn("user", "q"),), limit)

    class Limited(Simulation):
        def perform(self, actions) -> None:
            simulation_limits.extend(
                a.max_tokens for a in actions if type(a).__name__ == "OpenBranch"
            )
            super().perform(actions)

    judge = st.sampled_from([Verdict(), Verdict("Much more than it was, four times over.")])
    simulation = Limited(
        Policy(max_continuations=3),
        write,
        lambda review: data.draw(judge),
        can_continue=data.draw(st.booleans()),
        request=request,
        tell_more=data.draw(st.sampled_from([None, lambda left: 0, lambda left: left // 2])),
    )
    simulation.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert len(simulation.delivered.split()) <= limit


def test_the_review_of_the_same_sentence_sees_what_was_really_committed_before_it():
    seen: list[Review] = []

    def judge(review: Review) -> Verdict:
        seen.append(review)
        return Verdict("1.") if review.sentence == "One." else Verdict()

    texts = {"": ["One. Two. Three."], "1.": [" Zwei. Drei."]}
    simulation = Simulation(Policy(), lambda prefix: list(texts[prefix]), judge)
    simulation.run(lambda count: count - 1)
    assert simulation.delivered == "1. Zwei. Drei."
    assert Review((Turn("user", "q"),), "1. Zwei.", "Drei.") in seen
