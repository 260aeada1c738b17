"""Observers never raise into a session (rule 12), and labels never grow without bound."""

import logging

import pytest

from stream_aligner_proxy.core.errors import ProxyError, UpstreamRejected
from stream_aligner_proxy.core.records import Committed, Cost
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import Metrics

UNIT = Committed(0, "a private sentence", "text", "unreviewed", 0)


class Recorder:
    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.error = error

    def __getattr__(self, name: str):
        def record(*args: object) -> None:
            self.calls.append(name)
            if self.error is not None:
                raise self.error

        return record


def tell_everything(observer: Guarded) -> None:
    observer.opened("stream", "m")
    observer.branch_opened(0, 0)
    observer.committed(UNIT, 0.1)
    observer.first_text(0.2)
    observer.branch_closed(0)
    observer.closed("stream", "finished", 1.0, Cost(discarded_tokens=3))


ALL = ["opened", "branch_opened", "committed", "first_text", "branch_closed", "closed"]


def test_every_call_reaches_the_observer() -> None:
    recorder = Recorder()
    tell_everything(Guarded(recorder, lambda: pytest.fail("nothing failed")))
    assert recorder.calls == ALL


def test_a_raising_observer_is_counted_and_logged_without_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    failures: list[int] = []
    recorder = Recorder(ValueError("a private sentence"))
    tell_everything(Guarded(recorder, lambda: failures.append(1)))
    assert recorder.calls == ALL
    assert len(failures) == len(ALL)
    assert "Recorder raised ValueError" in caplog.text
    assert "private" not in caplog.text


def test_cancellation_is_not_an_observers_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        Guarded(Recorder(KeyboardInterrupt()), lambda: None).first_text(1.0)  # type: ignore[arg-type]


def exposition(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def test_metrics_tell_what_happened() -> None:
    metrics = Metrics()
    tell_everything(Guarded(metrics, lambda: pytest.fail("nothing failed")))
    text = exposition(metrics)
    assert 'stream_aligner_open_replies{mode="stream"} 0.0' in text
    assert "stream_aligner_branches_total 1.0" in text
    assert "stream_aligner_discarded_tokens_total 3.0" in text
    assert 'stream_aligner_sentences_total{verdict="unreviewed"} 1.0' in text
    assert "stream_aligner_unreviewed_characters_total 4.0" in text
    assert 'stream_aligner_replies_total{mode="stream",outcome="finished"} 1.0' in text


def test_labels_come_from_fixed_sets() -> None:
    metrics = Metrics()
    metrics.error(UpstreamRejected("no", code="whatever an upstream invents"))
    metrics.error(ProxyError("no", code="invented"))
    metrics.closed("off", "another invention", 1.0, Cost())
    text = exposition(metrics)
    assert "invent" not in text
    assert 'errors_total{code="upstream_rejected"} 1.0' in text
    assert 'replies_total{mode="off",outcome="upstream_rejected"} 1.0' in text
