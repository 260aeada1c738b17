"""OpenAI's Responses API: a reply as typed events with numbers, and as one object."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from stream_aligner_proxy.api.faces.face import Face
from stream_aligner_proxy.api.faces.openai_errors import OpenAiErrors
from stream_aligner_proxy.api.faces.responses_calls import Event
from stream_aligner_proxy.api.faces.responses_object import Asked, begun, ended, failed, outcome
from stream_aligner_proxy.api.faces.responses_output import Output
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Delivery, Finished

# Told the final object of a reply.
Keep = Callable[[Mapping[str, Any]], None]
Clock = Callable[[], float]
# Chat's fields in this API's words, for errors of what both APIs share.
_NAMES = {
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
# With obfuscation every delta and its padding have a multiple of so many characters.
_PADDED = 64


def face_of(asked: Asked, keep: Keep, clock: Clock = time.time) -> Face:
    """The face of one request. `keep` is called once, with the final object."""
    errors = ResponsesErrors()

    def events(plan: Plan) -> ResponseEvents:
        errors.events = ResponseEvents(plan, asked, keep, clock)
        return errors.events

    return Face(events, lambda plan: WholeResponse(plan, asked, keep, clock), errors)


class _Response:
    """What both ways to deliver share: the output as it grows, and the object that it ends in."""

    def __init__(self, plan: Plan, asked: Asked, keep: Keep, clock: Clock = time.time) -> None:
        self._asked = asked
        self._keep = keep
        self._clock = clock
        self._tells = plan.tells_sentences
        self._output = Output(asked.key, tells_sentences=self._tells)

    def _end(self, finished: Finished) -> list[Event]:
        """The events that end the output."""
        return self._output.end(outcome(finished.finish_reason)[0])

    def _final(self, finished: Finished) -> dict[str, Any]:
        """The final object, which is kept."""
        sentences = self._output.sentences if self._tells else None
        at = int(self._clock())
        response = ended(self._asked, finished, self._output.items, sentences, at)
        self._keep(response)
        return response


class ResponseEvents(_Response):
    """Makes the events of one reply."""

    def __init__(self, plan: Plan, asked: Asked, keep: Keep, clock: Clock = time.time) -> None:
        super().__init__(plan, asked, keep, clock)
        self._number = 2  # the first two belong to `first`, which is asked for later

    def first(self) -> bytes:
        started = begun(self._asked)
        return _encoded(0, {"type": "response.created", "response": started}) + _encoded(
            1, {"type": "response.in_progress", "response": started}
        )

    def delivery(self, delivery: Delivery, choice: int = 0) -> bytes:
        return self._written(self._output.add(delivery))

    def finished(self, finished: Finished, choice: int = 0) -> bytes:
        return self._written(self._end(finished))

    def last(self, finished: Sequence[Finished]) -> bytes:
        response = self._final(finished[0])
        return self._written([{"type": f"response.{response['status']}", "response": response}])

    def failed(self, error: ProxyError) -> bytes:
        """The end of a reply that broke off: an `error`, at which SDKs raise, then the object."""
        told = _renamed(error)["error"]
        self._output.end("incomplete")
        response = failed(self._asked, error, self._output.items)
        said = {name: told[name] for name in ("code", "message", "param")}
        return self._written(
            [
                {"type": "error", **said, "error": told},
                {"type": "response.failed", "response": response},
            ]
        )

    def _written(self, events: Sequence[Event]) -> bytes:
        pieces = []
        for event in events:
            if self._asked.obfuscated and "delta" in event:
                missing = -len(event["delta"]) % _PADDED
                event["obfuscation"] = secrets.token_urlsafe(missing)[:missing]
            pieces.append(_encoded(self._number, event))
            self._number += 1
        return b"".join(pieces)


def _encoded(number: int, event: Event) -> bytes:
    data = orjson.dumps({"type": event["type"], "sequence_number": number, **event})
    return b"".join((b"event: ", event["type"].encode(), b"\ndata: ", data, b"\n\n"))


class WholeResponse(_Response):
    """The same reply as one object."""

    def add(self, delivery: Delivery, choice: int = 0) -> None:
        self._output.add(delivery)

    def completion(self, finished: Sequence[Finished]) -> bytes:
        self._end(finished[0])
        return orjson.dumps(self._final(finished[0]))


class ResponsesErrors(OpenAiErrors):
    """OpenAI's errors, with fields named as in this API. `events`: the stream, once it begins."""

    def __init__(self) -> None:
        self.events: ResponseEvents | None = None

    def body(self, error: ProxyError, request_id: str) -> Mapping[str, Any]:
        return _renamed(error)

    def end(self, error: ProxyError, request_id: str) -> bytes:
        return b"" if self.events is None else self.events.failed(error)


def _renamed(error: ProxyError) -> dict[str, dict[str, str | None]]:
    """An error's body. Its upstream speaks of chat's fields, and so does what decides on modes."""
    body = error.body()
    message, param = error.message, error.param
    for theirs, ours in _NAMES.items():
        message = message.replace(f"'{theirs}'", f"'{ours}'")
        if param is not None and (
            param == theirs or param.startswith((f"{theirs}.", f"{theirs}["))
        ):
            # What comes after the name counts chat's messages, not the client's items.
            param = ours
    body["error"] |= {"message": message, "param": param}
    return body
