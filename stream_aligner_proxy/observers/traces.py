"""OpenTelemetry traces of replies, by the semantic conventions for generative AI.

    chat MODEL               SERVER    the reply; its parent is what the client sent (traceparent)
      chat MODEL             CLIENT    a branch; the upstream's parent: its traceparent goes along
      review ALIGNER         INTERNAL  what the aligner was asked; the parent of what a server of
                                       its own (backend `remote`) traces

Without content, unless that was asked for. Every span ends exactly once, on every way out: what is
open when the reply ends is ended then.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stream_aligner_proxy import __version__
from stream_aligner_proxy.core.edits import edit_distance
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Finished,
    Review,
    Verdict,
)
from stream_aligner_proxy.core.watching import ClosableObserver, HeldBy, Opening, Watch
from stream_aligner_proxy.observers.replies import current

_OWN = "stream_aligner."
_PROPAGATOR = TraceContextTextMapPropagator()
# What a request may hold, and how the conventions call it.
_ASKED: Mapping[str, tuple[str, type | tuple[type, ...]]] = {
    "temperature": (gen_ai.GEN_AI_REQUEST_TEMPERATURE, (int, float)),
    "top_p": (gen_ai.GEN_AI_REQUEST_TOP_P, (int, float)),
    "top_k": (gen_ai.GEN_AI_REQUEST_TOP_K, (int, float)),
    "seed": (gen_ai.GEN_AI_REQUEST_SEED, int),
    "frequency_penalty": (gen_ai.GEN_AI_REQUEST_FREQUENCY_PENALTY, (int, float)),
    "presence_penalty": (gen_ai.GEN_AI_REQUEST_PRESENCE_PENALTY, (int, float)),
}
# A longer text takes more than a millisecond, and an observer must not hold a session up.
_MEASURED_CHARS = 500
_OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings"}


@dataclass(frozen=True, slots=True)
class Content:
    """Whether spans hold what was said, each text up to `most` characters."""

    wanted: bool = False
    most: int = 4000


@dataclass(frozen=True, slots=True)
class Tracing:
    """What a trace needs to know beside the replies. `providers`: by an upstream's configured name,
    how the conventions call who serves it."""

    provider: TracerProvider
    providers: Mapping[str, str] = field(default_factory=dict)
    content: Content = field(default_factory=Content)


class Traces(ClosableObserver):
    """`close` sends what waits, and lasts as long as the exporter's own time limit at most."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._tracer = tracing.provider.get_tracer("stream_aligner_proxy", __version__)

    def opened(self, opening: Opening) -> Watch:
        operation = _OPERATIONS.get(opening.path, "chat")
        asked = _request_attributes(operation, opening.request, opening.streamed)
        parent = _PROPAGATOR.extract(opening.request.headers, context=Context())
        own = {
            f"{_OWN}mode": str(opening.mode),
            f"{_OWN}path": opening.path,
            f"{_OWN}request_id": opening.request.request_id,
        }
        if opening.aligner:
            own[f"{_OWN}aligner"] = opening.aligner
        if opening.key is not None:
            own[f"{_OWN}key"] = opening.key
        span = self._tracer.start_span(
            _name(asked), context=parent, kind=SpanKind.SERVER, attributes={**asked, **own}
        )
        if (told := current.get()) is not None:
            told.trace_id = format_trace_id(span.get_span_context().trace_id)
        if not span.is_recording():
            return _Passed(span)
        return _Traced(self._tracing, opening, span, self._tracer, asked)

    def close(self) -> None:
        self._tracing.provider.shutdown()


def _request_attributes(operation: str, request: ChatRequest, streamed: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {
        gen_ai.GEN_AI_OPERATION_NAME: operation,
        gen_ai.GEN_AI_REQUEST_MODEL: request.model,
        gen_ai.GEN_AI_REQUEST_STREAM: streamed,
    }
    if request.max_tokens is not None:
        asked[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] = request.max_tokens
    if request.stop:
        asked[gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES] = list(request.stop)
    for name, (attribute, kind) in _ASKED.items():
        value = request.body.get(name)
        if isinstance(value, kind) and not isinstance(value, bool):
            asked[attribute] = value
    return asked


def _name(asked: Mapping[str, Any]) -> str:
    return f"{asked[gen_ai.GEN_AI_OPERATION_NAME]} {asked[gen_ai.GEN_AI_REQUEST_MODEL]}".strip()


def _headers_of(span: Span) -> dict[str, str]:
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context=set_span_in_context(span, Context()))
    return headers


class _Passed(Watch):
    """A trace that is not recorded here: it only goes on, upstream and to the aligner."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def context(self, branch: int) -> Mapping[str, str]:
        return _headers_of(self._span)

    def review_context(self, review: int) -> Mapping[str, str]:
        return _headers_of(self._span)


class _Traced(Watch):
    __slots__ = ("_asked", "_branches", "_opening", "_reply", "_reviews", "_said",
                 "_tracer", "_tracing")  # fmt: skip

    def __init__(
        self,
        tracing: Tracing,
        opening: Opening,
        reply: Span,
        tracer: Tracer,
        asked: Mapping[str, Any],
    ) -> None:
        self._tracing = tracing
        self._opening = opening
        self._asked = asked
        self._reply = reply
        self._tracer = tracer
        self._branches: dict[int, Span] = {}
        self._reviews: dict[int, tuple[Span, Review]] = {}
        self._said: list[str] = []
        if tracing.content.wanted:
            self._tell_question()

    def context(self, branch: int) -> Mapping[str, str]:
        return _headers_of(self._branches.get(branch, self._reply))

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self._branches[branch] = self._tracer.start_span(
            _name(self._asked),
            context=set_span_in_context(self._reply, Context()),
            kind=SpanKind.CLIENT,
            attributes={
                **self._asked,
                f"{_OWN}branch": branch,
                f"{_OWN}prefix_chars": prefix_chars,
            },
        )

    def branch_answered(self, branch: int, upstream: str) -> None:
        provider = self._tracing.providers.get(upstream, upstream)
        self._reply.set_attribute(gen_ai.GEN_AI_PROVIDER_NAME, provider)
        self._reply.set_attribute(f"{_OWN}upstream", upstream)
        if (span := self._branches.get(branch)) is not None:
            span.set_attribute(gen_ai.GEN_AI_PROVIDER_NAME, provider)
            span.set_attribute(f"{_OWN}upstream", upstream)
            span.add_event("gen_ai.first_chunk")

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        if (span := self._branches.pop(branch, None)) is not None:
            _end(span, error)

    def review_started(self, review: int, asked: Review) -> None:
        span = self._tracer.start_span(
            f"review {self._opening.aligner}".strip(),
            context=set_span_in_context(self._reply, Context()),
            kind=SpanKind.INTERNAL,
            attributes={
                f"{_OWN}review": review,
                f"{_OWN}review.scope": asked.scope,
                f"{_OWN}review.sentence_chars": len(asked.sentence),
            },
        )
        self._reviews[review] = (span, asked)

    def review_context(self, review: int) -> Mapping[str, str]:
        held = self._reviews.get(review)
        return _headers_of(self._reply if held is None else held[0])

    def reviewed(
        self, review: int, verdict: Verdict | None, seconds: float, error: str | None = None
    ) -> None:
        if (held := self._reviews.get(review)) is None or verdict is None:
            self._end_review(review, error)
            return
        span, asked = held
        span.set_attribute(f"{_OWN}review.verdict", "keep" if verdict.kept else "replace")
        span.set_attribute(f"{_OWN}review.end", verdict.end)
        span.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, verdict.prompt_tokens)
        span.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, verdict.completion_tokens)
        if verdict.replacement is not None:
            longest = max(len(asked.sentence), len(verdict.replacement))
            if longest <= _MEASURED_CHARS:
                distance = edit_distance(asked.sentence, verdict.replacement, longest)
                span.set_attribute(f"{_OWN}review.edit_distance", distance)
        self._end_review(review, None)

    def review_dropped(self, review: int) -> None:
        if (held := self._reviews.get(review)) is not None:
            held[0].set_attribute(f"{_OWN}review.dropped", True)
            self._end_review(review, None)

    def _end_review(self, review: int, error: str | None) -> None:
        if (held := self._reviews.pop(review, None)) is not None:
            _end(held[0], error)

    def held(self, seconds: float, by: HeldBy) -> None:
        self._reply.add_event(f"{_OWN}held", {"by": by, "seconds": round(seconds, 4)})

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        if self._tracing.content.wanted:
            self._said.append(unit.text)
        if unit.outcome in ("replace", "unreviewed"):
            self._reply.add_event(
                f"{_OWN}{unit.outcome}", {"sentence": unit.index, "branch": unit.branch}
            )

    def first_text(self, seconds: float) -> None:
        self._reply.set_attribute(gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        for branch in list(self._branches):
            self.branch_closed(branch)
        for review in list(self._reviews):
            self.review_dropped(review)
        span = self._reply
        span.set_attribute(f"{_OWN}outcome", outcome)
        for name in ("branches", "corrections", "reviews", "unreviewed", "discarded_tokens"):
            span.set_attribute(f"{_OWN}{name}", getattr(cost, name))
        if finished is not None:
            reasons = [finished.finish_reason] if finished.finish_reason else []
            span.set_attribute(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, reasons)
            if finished.usage is not None:
                usage = finished.usage
                span.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, usage.prompt_tokens)
                span.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, usage.completion_tokens)
        if self._said:
            parts = [{"type": "text", "content": "".join(self._said)[: self._most]}]
            said = {"role": "assistant", "parts": parts}
            span.set_attribute(gen_ai.GEN_AI_OUTPUT_MESSAGES, json.dumps([said]))
        _end(span, None if outcome == "finished" else outcome)

    @property
    def _most(self) -> int:
        return self._tracing.content.most

    def _tell_question(self) -> None:
        messages = [
            {"role": turn.role, "parts": [{"type": "text", "content": turn.text[: self._most]}]}
            for turn in self._opening.request.conversation
        ]
        self._reply.set_attribute(gen_ai.GEN_AI_INPUT_MESSAGES, json.dumps(messages))


def _end(span: Span, error: str | None) -> None:
    """`error` is a code; a client that left is none of the server's errors."""
    if error is not None:
        span.set_attribute(ERROR_TYPE, error)
        if error != "cancelled":
            span.set_status(Status(StatusCode.ERROR))
    span.end()
