"""Traces as a collector gets them: by OTLP over HTTP, from a whole proxy."""

import asyncio
import gzip
import logging
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.core.records import ChatRequest, Cost, Mode, Review, Turn
from stream_aligner_proxy.core.watching import Opening
from stream_aligner_proxy.demo.script import Fault, Rule
from stream_aligner_proxy.observers import trace_export
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.observers.trace_export import make_provider
from stream_aligner_proxy.observers.traces import Traces, Tracing
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import tokenizer, trained
from tests.api.proxy import Proxy, proxy, replacing
from tests.fakes import FunctionAligner
from tests.servers import serve
from tests.waiting import until

pytestmark = pytest.mark.anyio
SECRET = "Anna's secret"
REPLY = f"{SECRET} has 3 apples. She eats one. So 2 are left."
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.headers: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        assert scope["path"] == "/v1/traces"
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = attributes(resource.resource)
            self.services.add(about["service.name"])
            for scoped in resource.scope_spans:
                self.spans += scoped.spans
        headers = [(b"content-type", b"application/x-protobuf")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def named(self, beginning: str, kind: int | None = None) -> list[Span]:
        found = [s for s in self.spans if s.name.startswith(beginning)]
        return sorted(
            (s for s in found if kind is None or s.kind == kind),
            key=lambda s: s.start_time_unix_nano,
        )

    @property
    def reply(self) -> Span:
        (span,) = self.named("", Span.SPAN_KIND_SERVER)
        return span


def attributes(holder: Any) -> dict[str, Any]:
    def value(told: Any) -> Any:
        kind = told.WhichOneof("value")
        if kind == "array_value":
            return [value(one) for one in told.array_value.values]
        return getattr(told, kind)

    return {one.key: value(one.value) for one in holder.attributes}


@asynccontextmanager
async def traced(
    *rules: Rule, aligner: Any = None, tracing: Any = None, **sections: Any
) -> AsyncIterator[tuple[Proxy, Collector]]:
    """After it all spans have been sent: the proxy has been closed."""
    collector = Collector()
    async with serve(collector) as address:
        section = {"endpoint": address, **(tracing or {})}
        async with proxy(*rules, aligner=aligner, tracing=section, **sections) as p:
            yield p, collector


def check_ended_once(collector: Collector) -> None:
    ids = [span.span_id for span in collector.spans]
    assert len(set(ids)) == len(ids)
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano > 0 for span in collector.spans)


async def test_a_corrected_stream_is_a_tree_of_branches_and_reviews() -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=1", "x-request-id": "req-1"}
    async with traced(Rule(REPLY), aligner=replacing(eats="She gives away one.")) as (p, collector):
        await p.post(stream=True, temperature=0.5, max_tokens=99, seed=7, headers=headers)
    check_ended_once(collector)
    reply = collector.reply
    assert reply.name == "chat scripted"
    assert reply.trace_id.hex() == TRACE
    assert reply.parent_span_id.hex() == "b7ad6b7169203331"
    told = attributes(reply)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"],
        "stream_aligner.mode": "stream",
        "stream_aligner.aligner": "default",
        "stream_aligner.request_id": "req-1",
        "stream_aligner.branches": 2,
        "stream_aligner.corrections": 1,
        "stream_aligner.outcome": "finished",
    }
    assert {key: told.get(key) for key in expected} == expected
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] > 0
    assert told["gen_ai.response.time_to_first_chunk"] > 0
    assert "error.type" not in told
    assert [e.name for e in reply.events].count("stream_aligner.replace") == 1
    branches = collector.named("chat scripted", Span.SPAN_KIND_CLIENT)
    reviews = collector.named("review default", Span.SPAN_KIND_INTERNAL)
    assert [attributes(b)["stream_aligner.branch"] for b in branches] == [0, 1]
    assert all(span.parent_span_id == reply.span_id for span in (*branches, *reviews))
    assert all("gen_ai.first_chunk" in [e.name for e in b.events] for b in branches)
    verdicts = [attributes(r).get("stream_aligner.review.verdict", "dropped") for r in reviews]
    assert verdicts.count("replace") == 1
    assert verdicts.count("keep") >= 2
    (changed,) = (
        r for r in reviews if attributes(r).get("stream_aligner.review.verdict") == "replace"
    )
    assert attributes(changed)["stream_aligner.review.edit_distance"] > 0
    # What went upstream belongs to the branch that it was.
    sent = [request.headers["traceparent"] for request in p.upstream.requests]
    assert sent == [f"00-{TRACE}-{b.span_id.hex()}-01" for b in branches]
    assert all(request.headers["tracestate"] == "a=1" for request in p.upstream.requests)
    assert collector.services == {"stream-aligner-proxy"}


async def test_no_content_and_no_key_unless_content_is_asked_for() -> None:
    headers = {"authorization": "Bearer sk-client"}
    async with traced(Rule(REPLY)) as (p, collector):
        await p.post(headers=headers)
    everything = "".join(str(span) for span in collector.spans)
    for text in (SECRET, "How many?", "sk-client"):
        assert text not in everything
    async with traced(Rule(REPLY), tracing={"content": True, "max_chars": 40}) as (p, collector):
        await p.post(headers=headers)
    told = attributes(collector.reply)
    assert "How many?" in told["gen_ai.input.messages"]
    assert SECRET in told["gen_ai.output.messages"]
    assert "left" not in told["gen_ai.output.messages"]
    assert "sk-client" not in "".join(str(span) for span in collector.spans)


async def test_what_a_remote_aligner_is_sent_belongs_to_the_review_that_it_was(
    tmp_path: Path,
) -> None:
    class Recording(CompletionServer):
        """With the headers of each request."""

        def __init__(self) -> None:
            super().__init__(trained(), key="sk-aligner")
            self.sent: list[dict[str, str]] = []

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path", "").endswith("/completions"):
                self.sent.append({k.decode(): v.decode() for k, v in scope["headers"]})
            await self.app(scope, receive, send)

    tokenizer().save_pretrained(tmp_path)
    server = Recording()
    async with serve(server) as address:
        options = {"profile": "compact", "urls": [f"{address}/v1"], "api_key": "sk-aligner"}
        aligner = RemoteAligner(tmp_path, **options)
        async with traced(Rule("The hen sat."), aligner=aligner) as (p, collector):
            headers = {"traceparent": PARENT, "tracestate": "a=1", "x-other": "not for it"}
            known = [{"role": "user", "content": "Go on."}]  # to the small model
            assert (await p.post(headers=headers, messages=known)).status_code == 200
    *introductions, sent = server.sent
    (review,) = collector.named("review default", Span.SPAN_KIND_INTERNAL)
    assert sent["traceparent"] == f"00-{TRACE}-{review.span_id.hex()}-01"
    assert sent["tracestate"] == "a=1"
    assert sent["authorization"] == "Bearer sk-aligner"
    assert "x-other" not in sent
    assert introductions
    assert not any("traceparent" in one for one in introductions)


class Held(SpanExporter):
    """A collector that does not answer before it may, and then as it is told."""

    def __init__(self, result: SpanExportResult) -> None:
        self.result = result
        self.asked, self.may = threading.Event(), threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.asked.set()
        assert self.may.wait(10)
        return self.result


@pytest.mark.parametrize("result", list(SpanExportResult))
def test_spans_that_the_collector_did_not_get_are_counted(
    result: SpanExportResult, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    collector = Held(result)
    provider = make_provider(
        "http://x", service_name="s", sample=1.0, exporter=collector,
        dropped=metrics.spans_dropped, queue=8,
    )  # fmt: skip
    tracer = provider.get_tracer("t")
    for _ in range(8):
        tracer.start_span("first").end()
    assert collector.asked.wait(10)  # and they are the collector's now
    for _ in range(30):
        tracer.start_span("more").end()
    collector.may.set()
    provider.shutdown()

    def lost(reason: str) -> float | None:
        name = "stream_aligner_trace_spans_dropped_total"
        return metrics.registry.get_sample_value(name, {"reason": reason})

    assert lost("queue") == 22
    assert lost("export") == (0 if result is SpanExportResult.SUCCESS else 16)
    ours = [r for r in caplog.records if r.name.startswith("stream_aligner_proxy")]
    assert len(ours) == 1


async def test_without_tracing_the_clients_context_goes_on_as_it_is() -> None:
    async with proxy(Rule(REPLY)) as p:
        await p.post(headers={"traceparent": PARENT})
    assert p.upstream.requests[0].headers["traceparent"] == PARENT


async def test_what_is_not_sampled_is_not_sent_but_goes_on_upstream() -> None:
    async with traced(Rule(REPLY), tracing={"sample": 0.0}) as (p, collector):
        await p.post()
        await p.post(headers={"traceparent": PARENT})  # who began it has chosen it
    own, theirs = (request.headers["traceparent"] for request in p.upstream.requests)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]", own)
    assert theirs.startswith(f"00-{TRACE}-")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


@pytest.mark.parametrize("mode", ["off", "shadow", "whole"])
async def test_every_mode_is_traced(mode: str) -> None:
    async with traced(Rule(REPLY)) as (p, collector):
        await p.post(stream_aligner={"mode": mode})
    check_ended_once(collector)
    assert attributes(collector.reply)["stream_aligner.mode"] == mode
    (branch,) = collector.named("chat", Span.SPAN_KIND_CLIENT)
    assert branch.span_id.hex() in p.upstream.requests[0].headers["traceparent"]
    assert bool(collector.named("review")) == (mode != "off")


async def test_errors_have_their_code_and_a_client_that_left_is_none() -> None:
    refused = Rule(REPLY, fault=Fault(status=500, body="no"))
    once = {"upstream": {"retries": 0}, "alignment": {"max_resumes": 0}}
    async with traced(refused, **once) as (p, collector):
        await p.post()
    assert collector.reply.status.code == 2
    assert attributes(collector.reply)["error.type"]
    (branch,) = collector.named("chat", Span.SPAN_KIND_CLIENT)
    assert attributes(branch)["error.type"] == attributes(collector.reply)["error.type"]

    def breaks(review: Review) -> None:
        raise RuntimeError(review.sentence)

    async with traced(Rule(REPLY), aligner=FunctionAligner(breaks)) as (p, collector):
        await p.post()
    (review, *_) = collector.named("review")
    assert attributes(review)["error.type"] == "review_failed"
    assert SECRET not in "".join(str(span) for span in collector.spans)

    async with traced(Rule(REPLY, fault=Fault(hold=2))) as (p, collector):
        asking = asyncio.create_task(p.post(stream=True))
        await until(lambda: p.upstream.running == 1)
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: p.upstream.running == 0)
    check_ended_once(collector)
    assert attributes(collector.reply)["stream_aligner.outcome"] == "cancelled"
    assert collector.reply.status.code == 0


async def test_a_collector_that_is_not_there_holds_up_no_reply() -> None:
    section = {"endpoint": "http://127.0.0.1:9"}
    async with proxy(Rule(REPLY), tracing=section) as p:
        answers = [await p.post() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_a_collector_that_is_not_there_is_told_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(trace_export._SELDOM, "_told", {})
    monkeypatch.setattr(trace_export, "time", SimpleNamespace(monotonic=lambda: now))
    make_provider("http://127.0.0.1:9", service_name="proxy", sample=1.0).shutdown()
    make_provider("http://127.0.0.1:9", service_name="proxy", sample=1.0).shutdown()
    exporter = logging.getLogger(trace_export.OTLPSpanExporter.__module__)
    for _ in range(3):
        exporter.warning("away")
        exporter.error("lost")
    assert [record.getMessage() for record in caplog.records] == ["away", "lost"]
    now += 61
    exporter.error("lost")
    assert len(caplog.records) == 3


async def test_headers_for_the_collector_come_from_the_environment() -> None:
    from stream_aligner_proxy.core.errors import ConfigError
    from stream_aligner_proxy.settings import build

    base = {
        "upstreams": [{"name": "m", "base_url": "http://127.0.0.1:9/v1", "dialect": "vllm"}],
        "aligner": {"backend": "rules", "path": __file__},
        "tracing": {"endpoint": "http://127.0.0.1:4318", "headers_env": "OTLP_HEADERS"},
    }
    with pytest.raises(ConfigError, match=r"tracing\.headers_env: .*OTLP_HEADERS"):
        build(base, environ={})
    made = build(base, environ={"OTLP_HEADERS": "x-key=secret"})
    assert made.tracing is not None
    assert "secret" not in repr(made)
    collector = Collector()
    async with serve(collector) as address:
        section = {"endpoint": address, "headers": "X-Key=secret, b=2"}
        async with proxy(Rule(REPLY), tracing=section) as p:
            await p.post()
            for path in ("/metrics", "/status", "/"):
                assert "secret" not in (await p.client.get(path)).text
    assert (collector.headers["x-key"], collector.headers["b"]) == ("secret", "2")


def test_what_is_open_when_a_reply_ends_ends_with_it() -> None:
    ended: list[str] = []

    class Processor:
        def on_start(self, span: Any, parent_context: Any = None) -> None: ...

        def _on_ending(self, span: Any) -> None: ...

        def on_end(self, span: Any) -> None:
            ended.append(span.name)

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Processor())  # type: ignore[arg-type]
    request = ChatRequest("m", {}, (Turn("user", "q"),))
    watch = Traces(Tracing(provider)).opened(Opening(Mode.STREAM, request, aligner="a"))
    watch.branch_opened(0, 0)
    watch.review_started(0, Review((), "", "x"))
    watch.review_started(1, Review((), "", "y"))
    watch.review_dropped(1)
    watch.review_dropped(1)
    watch.closed("cancelled", 1.0, Cost())
    watch.branch_closed(0)
    assert sorted(ended) == ["chat m", "chat m", "review a", "review a"]
