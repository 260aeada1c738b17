"""The session: tasks, cancellation and back-pressure around the loop."""

import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    RequestError,
    ReviewError,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Continuation,
    Mode,
    Policy,
    Turn,
    Usage,
    Verdict,
)
from stream_aligner_proxy.core.watching import Observer, Watch
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.session import Session
from tests.fakes import FunctionAligner, ListReply, MemoryUpstream, TellingAligner

pytestmark = pytest.mark.anyio
REQUEST = ChatRequest("m", {}, (Turn("user", "q"),))
KEEP = Verdict()
BOUND = 5  # seconds; what is waited for here happens at once or never


def session(upstream, aligner=None, policy=None, observer=None) -> Session:
    return Session(
        REQUEST,
        upstream=upstream,
        aligner=aligner or FunctionAligner(),
        policy=policy or Policy(),
        observer=observer,
    )


def words(text: str) -> list[str]:
    return [word + " " for word in text.split()]


def tasks() -> set[asyncio.Task]:
    """The session's own tasks: readers and reviews."""
    everything = asyncio.all_tasks() - {asyncio.current_task()}
    return {task for task in everything if "Session." in task.get_coro().__qualname__}


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(300):
        await asyncio.sleep(0)


async def test_a_corrected_sentence_steers_what_the_upstream_writes_next():
    texts = {"": "I am rude. You fool. ", "I am kind.": " Dear friend. "}
    upstream = MemoryUpstream(lambda prefix: words(texts[prefix]))

    def judge(review):
        return Verdict("I am kind.") if "rude" in review.sentence else Verdict()

    reply = ListReply()
    finished = await session(upstream, FunctionAligner(judge)).run(reply)
    assert reply.text.split() == ["I", "am", "kind.Dear", "friend."]
    assert finished.finish_reason == "stop"
    assert finished.continuation == "prefill"
    assert finished.cost.branches == 2
    assert (upstream.opened, upstream.closed) == (2, 2)
    assert upstream.prefixes == ["", "I am kind."]
    assert not tasks()


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.WHOLE, Mode.SHADOW])
async def test_an_aligner_that_keeps_everything_leaves_text_finish_and_usage_alone(mode):
    upstream = MemoryUpstream(lambda prefix: words("One two. Three four. Five."))
    reply = ListReply()
    finished = await session(upstream, policy=Policy(mode=mode)).run(reply)
    assert reply.text == "One two. Three four. Five. "
    assert (finished.finish_reason, finished.usage) == ("stop", Usage(10, 5))


async def test_shadow_delivers_before_any_verdict_and_records_what_would_have_been():
    gate = asyncio.Event()
    aligner = FunctionAligner(lambda review: Verdict("Changed."), gate)
    upstream = MemoryUpstream(lambda prefix: words("One. Two. Three."))
    reply = ListReply()
    running = asyncio.create_task(session(upstream, aligner, Policy(mode=Mode.SHADOW)).run(reply))
    await settle()
    assert reply.text == "One. Two. Three. "
    gate.set()
    finished = await asyncio.wait_for(running, BOUND)
    units = [delivery.unit for delivery in reply.deliveries if delivery.unit]
    assert {unit.text for unit in units if unit.outcome == "replace"} == {"Changed.", " Changed."}
    assert finished.cost.corrections == 3
    assert upstream.opened == 1


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.WHOLE, Mode.SHADOW])
async def test_cancelling_ends_reader_reviews_and_branch_before_run_returns(mode):
    never = asyncio.Event()
    upstream = MemoryUpstream(lambda prefix: [*words("One. Two. Three."), never])
    aligner = FunctionAligner(gate=never)
    running = asyncio.create_task(session(upstream, aligner, Policy(mode=mode)).run(ListReply()))
    await settle()
    assert (upstream.opened, upstream.closed) == (1, 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, BOUND)
    assert upstream.closed == 1
    assert aligner.running == 0
    assert not tasks()


async def test_cancelling_before_the_first_token_closes_the_branch():
    upstream = MemoryUpstream(lambda prefix: [asyncio.Event()])
    running = asyncio.create_task(session(upstream).run(ListReply()))
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, BOUND)
    assert (upstream.opened, upstream.closed) == (1, 1)
    assert not tasks()


def rude(review):
    """Every other sentence is rewritten."""
    return Verdict(review.sentence.replace("bad", "good")) if "bad" in review.sentence else KEEP


def numbered(prefix: str) -> list[str]:
    """Six sentences, of which those left are written."""
    kinds = ["is bad", "is fine", "is bad", "is fine", "is bad", "is bad"]
    done = prefix.count(".")
    return words(" ".join(f"Sentence {n} {k}." for n, k in enumerate(kinds, 1) if n > done))


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.WHOLE, Mode.SHADOW])
@pytest.mark.parametrize("kind", [FunctionAligner, TellingAligner])
async def test_cancelling_at_any_step_closes_everything_before_run_returns(mode, kind):
    steps = 0
    finished = False
    while not finished:
        upstream, aligner, recorder = MemoryUpstream(numbered), kind(rude), Recorder()
        policy = Policy(mode=mode)
        one = session(upstream, aligner, policy, observer=recorder)
        running = asyncio.create_task(one.run(ListReply()))
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=BOUND)
        finished = not running.cancelled()
        assert running.done()
        assert upstream.opened == upstream.closed
        assert aligner.running == 0
        assert not tasks()
        names = [call[0] for call in recorder.calls]
        assert names.count("branch_opened") == names.count("branch_closed")
        assert steps == 0 or names[-1] == "closed"
        steps += 1
    assert steps > 20
    assert running.result().cost.corrections == (1 if mode is Mode.WHOLE else 4)


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.WHOLE])
async def test_what_is_told_reaches_the_client_before_the_verdict_and_adds_up_to_the_reply(mode):
    upstream = MemoryUpstream(numbered)
    reply = ListReply()
    await session(upstream, TellingAligner(rude), Policy(mode=mode)).run(reply)
    assert "".join(reply.text.split()) == "".join(numbered("")).replace(" ", "").replace(
        "bad", "good"
    )
    units = [delivery.unit for delivery in reply.deliveries if delivery.unit]
    assert "".join(unit.text for unit in units) == reply.text
    assert len(reply.deliveries) > 2 * len(units)
    assert upstream.opened == upstream.closed == (1 if mode is Mode.WHOLE else 5)


async def test_each_continuation_goes_out_under_an_id_of_its_own():
    ids: list[str] = []

    class Watching(MemoryUpstream):
        def open(self, request, *, prefix="", max_tokens=None):
            ids.append(request.request_id)
            return super().open(request, prefix=prefix, max_tokens=max_tokens)

    request = ChatRequest("m", {}, (Turn("user", "q"),), request_id="r")
    policy = Policy()
    one = Session(
        request, upstream=Watching(numbered), aligner=FunctionAligner(rude), policy=policy
    )
    await one.run(ListReply())
    assert ids == ["r", "r-1", "r-2", "r-3", "r-4"]


async def test_the_aligner_is_hinted_at_reviews_to_come():
    class Expecting(FunctionAligner):
        expected: list = []  # noqa: RUF012

        def expect(self, review):
            self.expected.append(review)

    aligner = Expecting()
    await session(MemoryUpstream(lambda prefix: words("word " * 30)), aligner).run(ListReply())
    assert aligner.expected[0].sentence == ""
    assert len(aligner.expected) > 2


async def test_a_correction_stops_a_branch_and_reviews_that_would_never_end_by_themselves():
    never = asyncio.Event()
    texts = {"": [*words("One. Two. Three."), never], "1.": [" Two."]}
    upstream = MemoryUpstream(lambda prefix: texts[prefix])

    class Stuck(FunctionAligner):
        async def review(self, review, progress=None):
            if review.committed == "One.":
                self.gate = never
            elif review.committed.startswith("1."):
                self.gate = None
            return await super().review(review)

    aligner = Stuck(lambda review: Verdict("1.") if review.sentence == "One." else Verdict())
    reply = ListReply()
    await asyncio.wait_for(session(upstream, aligner).run(reply), BOUND)
    assert reply.text == "1. Two."
    assert aligner.running == 0
    assert (upstream.opened, upstream.closed) == (2, 2)


async def test_a_slow_aligner_stops_the_reading_of_the_upstream():
    gate = asyncio.Event()
    upstream = MemoryUpstream(lambda prefix: words("A b. " * 500))
    running = asyncio.create_task(
        session(upstream, FunctionAligner(gate=gate), Policy(lookahead=3)).run(ListReply())
    )
    await settle()
    assert upstream.read <= 2 * 5
    before = upstream.read
    await settle()
    assert upstream.read == before
    gate.set()
    await asyncio.wait_for(running, BOUND)
    assert upstream.read == 1000


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.SHADOW])
async def test_a_slow_client_stops_the_reading_of_the_upstream(mode):
    gate = asyncio.Event()
    upstream = MemoryUpstream(lambda prefix: words("A b. " * 500))
    reply = ListReply(gate)
    running = asyncio.create_task(session(upstream, policy=Policy(mode=mode)).run(reply))
    for _ in range(10):
        await settle()
    assert upstream.read < 400
    gate.set()
    await asyncio.wait_for(running, BOUND)
    assert reply.text == "A b. " * 500


async def test_an_upstream_that_breaks_in_the_middle_delivers_what_was_reviewed_and_raises():
    upstream = MemoryUpstream(lambda prefix: [*words("One. Two. Thr"), UpstreamUnreachable("gone")])
    reply = ListReply()
    with pytest.raises(UpstreamUnreachable):
        await session(upstream, policy=Policy(max_resumes=0)).run(reply)
    assert reply.text == "One. Two."
    assert (upstream.opened, upstream.closed) == (1, 1)
    assert not tasks()


async def test_an_aligner_that_raises_anything_ends_the_reply_with_nothing_unreviewed(caplog):
    def judge(review):
        raise ValueError("secret detail")

    upstream = MemoryUpstream(lambda prefix: words("One. Two."))
    reply = ListReply()
    with pytest.raises(Exception, match="unexpectedly") as raised:
        await session(upstream, FunctionAligner(judge)).run(reply)
    assert "secret" not in str(raised.value)
    assert reply.text == ""
    assert not tasks()


async def test_a_bug_in_the_upstream_client_is_raised_as_it_is_and_leaves_no_task():
    upstream = MemoryUpstream(lambda prefix: [*words("One. "), KeyError("bug")])
    with pytest.raises(KeyError):
        await session(upstream).run(ListReply())
    assert not tasks()


async def test_a_client_that_fails_while_being_written_to_ends_everything():
    class Gone(ListReply):
        async def deliver(self, delivery):
            raise OSError("gone")

    upstream = MemoryUpstream(lambda prefix: words("One. Two. Three."))
    with pytest.raises(OSError, match="gone"):
        await session(upstream).run(Gone())
    assert upstream.closed == upstream.opened
    assert not tasks()


class Recorder(Observer):
    """Keeps what its watches are told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def opened(self, opening):
        self.calls.append(("opened", opening))
        return _Recording(self.calls)


class _Recording(Watch):
    def __init__(self, calls):
        self._calls = calls

    def __getattribute__(self, name):
        if name.startswith("_"):
            return super().__getattribute__(name)
        if name == "context":
            return lambda branch: {}
        return lambda *args: self._calls.append((name, *args))


async def test_observers_see_as_many_branches_closed_as_opened_on_every_way_out():
    never = asyncio.Event()
    for items, cancel in (
        (words("One. Two."), False),
        ([*words("One."), UpstreamUnreachable("x")], False),
        ([*words("One. Two."), never], True),
    ):
        recorder = Recorder()
        upstream = MemoryUpstream(lambda prefix, items=items: list(items))
        running = asyncio.create_task(
            session(upstream, policy=Policy(max_resumes=0), observer=recorder).run(ListReply())
        )
        await settle()
        if cancel:
            running.cancel()
        await asyncio.wait([running], timeout=BOUND)
        running.exception() if not running.cancelled() else None
        names = [call[0] for call in recorder.calls]
        assert names.count("branch_opened") == names.count("branch_closed") == 1
        assert names[0] == "opened"
        assert names[-1] == "closed"


async def test_every_review_that_is_started_is_told_to_be_judged_or_dropped():
    texts = {"": "One is rude. Two is fine. ", "One is kind.": " Three is new."}
    recorder = Recorder()
    upstream = MemoryUpstream(lambda prefix: words(texts[prefix]))

    def judge(review):
        return Verdict("One is kind.") if "rude" in review.sentence else KEEP

    await session(upstream, FunctionAligner(judge), observer=recorder).run(ListReply())
    calls = {name: [c[1] for c in recorder.calls if c[0] == name] for name, *_ in recorder.calls}
    assert len(set(calls["review_started"])) == len(calls["review_started"]) >= 2
    assert set(calls["review_started"]) == set(calls["reviewed"]) | set(
        calls.get("review_dropped", ())
    )
    assert calls["branch_opened"] == calls["branch_answered"] == calls["branch_closed"] == [0, 1]


async def test_a_branch_takes_along_the_headers_that_its_watch_gives():
    class Tracing(Observer):
        def opened(self, opening):
            return Trace()

    class Trace(Watch):
        def context(self, branch):
            return {"traceparent": f"of branch {branch}"}

    seen = []

    class Upstream(MemoryUpstream):
        def open(self, request, **options):
            seen.append(request.headers["traceparent"])
            return super().open(request, **options)

    texts = {"": "One is rude. Two is fine. ", "One is kind.": " Three is new."}
    upstream = Upstream(lambda prefix: words(texts[prefix]))

    def judge(review):
        return Verdict("One is kind.") if "rude" in review.sentence else KEEP

    await session(upstream, FunctionAligner(judge), observer=Tracing()).run(ListReply())
    assert seen == ["of branch 0", "of branch 1"]


async def test_a_branch_and_a_review_that_break_are_told_with_their_codes():
    recorder = Recorder()
    upstream = MemoryUpstream(lambda prefix: [*words("One."), UpstreamUnreachable("x")])
    with pytest.raises(UpstreamUnreachable):
        await session(upstream, policy=Policy(max_resumes=0), observer=recorder).run(ListReply())
    assert ("branch_closed", 0, "upstream_unreachable") in recorder.calls

    def fails(review):
        raise ReviewError("no")

    recorder = Recorder()
    upstream = MemoryUpstream(lambda prefix: words("One. Two."))
    with pytest.raises(ReviewError):
        await session(upstream, FunctionAligner(fails), observer=recorder).run(ListReply())
    failed = [call for call in recorder.calls if call[0] == "reviewed"]
    assert failed
    assert all(call[2] is None and call[4] == "review_failed" for call in failed)
    closed = recorder.calls[-1]
    assert closed[:2] == ("closed", "review_failed")
    assert closed[4] is None


async def test_an_observer_that_raises_does_not_touch_the_reply(caplog):
    class Bad(Observer):
        def opened(self, opening):
            return BadWatch()

    class BadWatch(Watch):
        def __getattribute__(self, name):
            raise RuntimeError("observer bug")

    failures: list[int] = []
    reply = ListReply()
    upstream = MemoryUpstream(lambda prefix: words("One. Two."))
    await session(upstream, observer=Guarded([Bad()], lambda: failures.append(1))).run(reply)
    assert reply.text == "One. Two. "
    assert failures


async def test_an_aligner_that_cannot_review_sentences_refuses_the_mode_by_name():
    aligner = FunctionAligner()
    aligner.scopes = frozenset(("whole",))
    with pytest.raises(RequestError) as raised:
        session(MemoryUpstream(lambda prefix: []), aligner)
    assert raised.value.param == "stream_aligner.mode"


class Unsure(MemoryUpstream):
    """It is not known to continue."""

    def continuation(self, request):
        return Continuation("instruct", sure=False)


def polite(review):
    return Verdict("I am kind.") if "rude" in review.sentence else Verdict()


async def test_a_refused_continuation_is_not_noticed_by_the_client():
    texts = {"": "I am rude. You are nice. So am I. ", "I am kind.": ContinuationFailed("again")}
    upstream = Unsure(
        lambda prefix: words(texts[prefix]) if prefix == "" else [texts[prefix]],
    )
    reply = ListReply()
    finished = await session(upstream, FunctionAligner(polite)).run(reply)
    assert reply.text == "I am kind. You are nice. So am I. "
    assert finished.continuation == "rewrite-only"
    assert finished.cost.refused_continuations == 1
    assert upstream.opened == upstream.closed == 2


async def test_a_parked_branch_is_not_read_and_ends_with_the_reply():
    hold = asyncio.Event()
    first = [*words("I am rude. "), *words("More. " * 50)]
    upstream = Unsure(lambda prefix: first if prefix == "" else [hold, " Dear", " friend."])
    reply = ListReply()
    running = asyncio.create_task(session(upstream, FunctionAligner(polite)).run(reply))
    await settle()
    read = upstream.read
    await settle()
    assert upstream.read == read < len(first)
    hold.set()
    await running
    assert reply.text.startswith("I am kind. Dear friend.")
    assert upstream.opened == upstream.closed == 2
    assert not tasks()


@pytest.mark.parametrize("steps", range(0, 60, 4))
async def test_leaving_with_a_parked_branch_leaves_nothing_behind(steps):
    never = asyncio.Event()
    upstream = Unsure(lambda prefix: [*words("I am rude. You too. "), never])
    running = asyncio.create_task(session(upstream, FunctionAligner(polite)).run(ListReply()))
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=BOUND)
    assert upstream.opened == upstream.closed
    assert not tasks()


async def test_a_reply_whose_upstream_breaks_goes_on():
    texts = {
        "": ["One.", " Two.", " Thr", UpstreamUnreachable("gone")],
        "One. Two.": [" Three."],
    }
    upstream = MemoryUpstream(texts.__getitem__)
    reply = ListReply()
    finished = await session(upstream).run(reply)
    assert reply.text == "One. Two. Three."
    assert finished.cost.resumes == 1


class Refusing(FunctionAligner):
    async def review(self, review, progress=None):
        raise ReviewError("no")


@pytest.mark.parametrize("fails", ["upstream", "upstream, once", "aligner"])
async def test_a_reply_that_failed_is_let_go_of_at_once_and_not_by_the_garbage_collector(fails):
    def write(prefix):
        ends = not fails.startswith("upstream") or (prefix and fails != "upstream")
        return ["One. Two."] if ends else ["One. Two.", UpstreamUnreachable("gone")]

    gc.collect()
    gc.disable()
    try:
        aligner = Refusing() if fails == "aligner" else None
        running = session(MemoryUpstream(write), aligner)
        held = weakref.ref(running)
        with suppress(UpstreamUnreachable, ReviewError):
            await running.run(ListReply())
        del running
        await settle()
        assert held() is None
    finally:
        gc.enable()


class Beginnings(MemoryUpstream):
    """Keeps how each branch was told that the reply began."""

    def __init__(self, write):
        super().__init__(write)
        self.told: list[str] = []

    def open(self, request, *, prefix="", max_tokens=None):
        self.told.append(request.began)
        return super().open(request, prefix=prefix, max_tokens=max_tokens)


async def test_where_the_first_branch_broke_the_reply_began_with_the_second():
    first = iter(([" I am", UpstreamUnreachable("gone")], ["I am rude. You fool. "]))
    upstream = Beginnings(lambda prefix: [" Dear friend. "] if prefix else next(first))
    reply = ListReply()
    await session(upstream, FunctionAligner(polite)).run(reply)
    assert reply.text == "I am kind. Dear friend. "
    assert upstream.prefixes == ["", "", "I am kind."]
    assert upstream.told[2].startswith("I am rude.")


class Clock:
    """Goes on only where a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def timed(clock, upstream, aligner, **policy) -> Session:
    return Session(
        REQUEST, upstream=upstream, aligner=aligner, policy=Policy(**policy), clock=clock
    )


async def test_a_correction_adds_its_review_and_the_opening_of_the_next_branch():
    clock = Clock()
    texts = {"": "I am rude. You fool. ", "I am kind.": " Dear friend. "}

    def write(prefix):
        clock.pass_(3 if prefix else 1)
        return words(texts[prefix])

    def judge(review):
        if "rude" not in review.sentence:
            return Verdict()
        clock.pass_(2)
        return Verdict("I am kind.")

    finished = await timed(clock, MemoryUpstream(write), FunctionAligner(judge)).run(ListReply())
    assert finished.cost.corrections == 1
    assert finished.added_seconds == 5
    assert finished.first_text_seconds == 3


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.SHADOW])
async def test_verdicts_that_come_after_the_end_of_the_upstream_are_added(mode):
    clock, gate = Clock(), asyncio.Event()

    def judge(review):
        clock.pass_(2)
        return Verdict()

    upstream = MemoryUpstream(lambda prefix: words("One two. Three four. Five."))
    one = timed(clock, upstream, FunctionAligner(judge, gate=gate), mode=mode)
    running = asyncio.create_task(one.run(ListReply()))
    await settle()
    clock.pass_(10)
    gate.set()
    finished = await running
    assert finished.cost.reviews == 3
    assert finished.added_seconds == 16


async def test_time_in_which_the_upstream_could_not_be_read_is_added():
    clock, gate = Clock(), asyncio.Event()
    upstream = MemoryUpstream(lambda prefix: words("A b. " * 20))
    one = timed(clock, upstream, FunctionAligner(gate=gate), lookahead=3)
    running = asyncio.create_task(one.run(ListReply()))
    await settle()
    clock.pass_(7)
    gate.set()
    assert (await running).added_seconds == 7
