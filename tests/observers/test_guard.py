"""Observers never raise into a session (rule 12), and labels never grow without bound."""

import logging

import pytest

from stream_aligner_proxy.core.errors import ProxyError, UpstreamRejected
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Finished,
    Mode,
    Review,
    Verdict,
)
from stream_aligner_proxy.core.watching import Observer, Opening, Watch
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import Metrics

UNIT = Committed(0, "a private sentence", "text", "unreviewed", 0)


OPENING = Opening(Mode.STREAM, ChatRequest("m", {}, ()))
VERDICT = Verdict("text")
FINISHED = Finished("stop", None, Cost(), Mode.STREAM, "ids")


class Recorder(Observer, Watch):
    """Watches every reply itself."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.error = error

    def opened(self, opening: Opening) -> Watch:
        self._called("opened")
        return self

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.error is not None and name != "opened":
            raise self.error


def _recorded(name: str):
    return lambda self, *args: self._called(name)


CALLS = [
    ("branch_opened", (0, 0)),
    ("context", (0,)),
    ("branch_answered", (0, "main")),
    ("review_started", (0, Review((), "", "a private sentence"))),
    ("review_context", (0,)),
    ("reviewed", (0, VERDICT, 0.1, None)),
    ("review_dropped", (0,)),
    ("held", (0.1, "client")),
    ("committed", (UNIT, 0.1)),
    ("delivered", (UNIT, 0.3)),
    ("first_text", (0.2,)),
    ("relayed", (12,)),
    ("branch_closed", (0, None)),
    ("refused", ()),
    ("closed", ("finished", 1.0, Cost(branches=1, discarded_tokens=3), FINISHED)),
]
for name, _ in CALLS:
    setattr(Recorder, name, _recorded(name))


def test_the_calls_below_are_all_that_a_watch_is_told() -> None:
    public = {name for name in vars(Watch) if not name.startswith("_")}
    assert {name for name, _ in CALLS} == public


def give_headers(recorder: Recorder, headers: dict[str, str]) -> None:
    recorder.context = lambda branch: headers  # type: ignore[method-assign]
    recorder.review_context = lambda review: headers  # type: ignore[method-assign]


def tell_everything(observer: Observer) -> None:
    watch = observer.opened(OPENING)
    for name, arguments in CALLS:
        getattr(watch, name)(*arguments)


ALL = ["opened", *(name for name, _ in CALLS)]


def test_every_call_reaches_every_observer() -> None:
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        give_headers(recorder, {"traceparent": "00"})
    tell_everything(Guarded(recorders, lambda: pytest.fail("nothing failed")))
    for recorder in recorders:
        assert recorder.calls == [name for name in ALL if "context" not in name]


def test_the_context_of_all_observers_goes_along() -> None:
    one, other = Recorder(), Recorder()
    give_headers(one, {"traceparent": "00"})
    give_headers(other, {"baggage": "a=b"})
    guarded = Guarded([one, other], lambda: pytest.fail("nothing failed"))
    assert guarded.opened(OPENING).context(0) == {"traceparent": "00", "baggage": "a=b"}
    assert guarded.opened(OPENING).review_context(0) == {"traceparent": "00", "baggage": "a=b"}


def test_a_raising_observer_is_counted_and_logged_without_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    failures: list[int] = []
    recorder, after = Recorder(ValueError("a private sentence")), Recorder()
    give_headers(after, {})
    tell_everything(Guarded([recorder, after], lambda: failures.append(1)))
    assert recorder.calls == ALL
    assert after.calls == [name for name in ALL if "context" not in name]
    assert len(failures) == len(CALLS)
    assert "Recorder raised ValueError" in caplog.text
    assert "private" not in caplog.text


def test_an_observer_that_cannot_even_begin_is_left_out_of_the_reply() -> None:
    class Broken(Observer):
        def opened(self, opening: Opening) -> Watch:
            raise ValueError

    failures: list[int] = []
    tell_everything(Guarded([Broken()], lambda: failures.append(1)))
    assert failures == [1]


def test_cancellation_is_not_an_observers_failure() -> None:
    watch = Guarded([Recorder(KeyboardInterrupt())], lambda: None).opened(OPENING)
    with pytest.raises(KeyboardInterrupt):
        watch.first_text(1.0)


def exposition(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def test_metrics_tell_what_happened() -> None:
    metrics = Metrics()
    tell_everything(Guarded([metrics], lambda: pytest.fail("nothing failed")))
    text = exposition(metrics)
    assert 'stream_aligner_open_replies{mode="stream"} 0.0' in text
    assert 'stream_aligner_branches_total{reason="first"} 1.0' in text
    assert "stream_aligner_discarded_tokens_total 3.0" in text
    assert 'stream_aligner_sentences_total{verdict="unreviewed"} 1.0' in text
    assert "stream_aligner_unreviewed_characters_total 4.0" in text
    assert 'stream_aligner_replies_total{mode="stream",outcome="request_rejected"} 1.0' in text


def test_labels_come_from_fixed_sets() -> None:
    metrics = Metrics()
    metrics.error(UpstreamRejected("no", code="whatever an upstream invents"))
    metrics.error(ProxyError("no", code="invented"))
    off = Opening(Mode.OFF, ChatRequest("m", {}, ()))
    metrics.opened(off).closed("another invention", 1.0, Cost())
    text = exposition(metrics)
    assert "invent" not in text
    assert 'errors_total{code="upstream_rejected"} 1.0' in text
    assert 'replies_total{mode="off",outcome="upstream_rejected"} 1.0' in text
