"""What a client saw, judged: which text came, how it ended, and whether it may end so."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.faulty.client import Seen
from bench.faulty.plan import Plan

_CHAT_ERROR = {"message", "type", "param", "code"}
# Of an error that only the aligner can cause.
REVIEW_ERRORS = frozenset(("review_failed", "api_error"))


class Invalid(Exception):
    """It must not end so."""


@dataclass(slots=True)
class Judged:
    """`texts`: of each choice. `error`: the code of the one error that it ended with, for Anthropic
    its type. `finished`: it has a finish reason for each choice. `fault`: what is wrong."""

    texts: dict[int, str] = field(default_factory=dict)
    error: str | None = None
    finished: int = 0
    fault: str = ""
    unreviewed: int = 0


def judge(seen: Seen, *, excused: bool = False) -> Judged:
    """`excused`: the server was killed meanwhile, so that anything may have been cut."""
    judged = Judged()
    plan = seen.plan
    try:
        _read(seen, judged)
        _check_end(seen, judged, excused=excused)
    except Invalid as error:
        judged.fault = str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        judged.fault = f"cannot be read: {error!r}"
    for text in judged.texts.values():
        known = shared(text, plan.expected)
        if plan.mode == "off":
            if known < len(text):
                judged.fault = judged.fault or "another text than the upstream's"
            continue
        judged.unreviewed += len(text) - known
    if judged.unreviewed:
        judged.fault = judged.fault or "holds what the aligner has not committed"
    whole = judged.error is None and bool(judged.finished) and seen.how == "whole"
    if whole and not judged.fault and any(t != plan.expected for t in judged.texts.values()):
        judged.fault = "finished, and not all of the text came"
    return judged


def shared(text: str, expected: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(text, expected, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(text), len(expected)))


def _check_end(seen: Seen, judged: Judged, *, excused: bool) -> None:
    plan = seen.plan
    if not plan.stays or excused:
        if seen.how in ("hung", "malformed") and not excused:
            raise Invalid(f"the answer was {seen.how}")
        return
    if seen.how != "whole":
        raise Invalid(f"the answer was {seen.how}")
    if judged.error is None and judged.finished != plan.choices:
        raise Invalid(f"{judged.finished} of {plan.choices} choices have finished")
    if judged.error is not None and judged.finished == plan.choices and plan.stream:
        raise Invalid("an error after the end")


def _read(seen: Seen, judged: Judged) -> None:
    plan = seen.plan
    if seen.status is None:
        return
    if seen.status != 200:
        if seen.how == "whole":
            _read_refusal(seen, judged)
        return
    if not plan.stream:
        if seen.how == "whole":
            _read_object(plan, json.loads(seen.body), judged)
        return
    if seen.headers.get("content-type") != "text/event-stream; charset=utf-8":
        raise Invalid(f"content type {seen.headers.get('content-type')}")
    whole, _, torn = bytes(seen.body).rpartition(b"\n\n")
    if torn and seen.how == "whole":
        raise Invalid("the last event has no end")
    reader = {"chat": _read_chat, "completions": _read_chat, "messages": _read_messages}
    reader.get(plan.api, _read_responses)(list(_events(whole)), judged, seen.how == "whole")


def _events(body: bytes) -> Iterator[tuple[str, str]]:
    """Name and data of each event."""
    for event in body.decode().split("\n\n") if body else ():
        name, lines = "", event.split("\n")
        if lines[0].startswith("event: "):
            name = lines.pop(0)[7:]
        if len(lines) != 1 or not lines[0].startswith("data: "):
            raise Invalid(f"not an event: {event[:100]!r}")
        yield name, lines[0][6:]


def _read_refusal(seen: Seen, judged: Judged) -> None:
    body = json.loads(seen.body)
    if seen.plan.api == "messages":
        judged.error = _anthropic(body)
    else:
        if set(body) != {"error"}:
            raise Invalid(f"an error with {sorted(body)}")
        judged.error = _openai(body["error"])
    if not seen.headers.get("x-request-id"):
        raise Invalid("an error without an id")


def _openai(error: dict[str, Any]) -> str:
    if set(error) != _CHAT_ERROR or not error["message"]:
        raise Invalid(f"an error of another shape: {error}")
    return str(error["code"] or error["type"])


def _anthropic(body: dict[str, Any]) -> str:
    error = body["error"]
    if body["type"] != "error" or set(error) != {"type", "message"} or not error["message"]:
        raise Invalid(f"an error of another shape: {body}")
    return str(error["type"])


def _read_chat(events: list[tuple[str, str]], judged: Judged, whole: bool) -> None:
    if whole and (not events or events[-1][1] != "[DONE]"):
        raise Invalid("no [DONE] at the end")
    for number, (_, data) in enumerate(events):
        if data == "[DONE]":
            if number != len(events) - 1:
                raise Invalid("something after [DONE]")
            return
        frame = json.loads(data)
        if "error" in frame:
            if judged.error is not None:
                raise Invalid("two errors")
            judged.error = _openai(frame["error"])
            continue
        if judged.error is not None:
            raise Invalid("something after the error")
        for choice in frame["choices"]:
            text = choice.get("text") or choice.get("delta", {}).get("content") or ""
            index = choice["index"]
            judged.texts[index] = judged.texts.get(index, "") + text
            judged.finished += choice["finish_reason"] is not None


def _read_messages(events: list[tuple[str, str]], judged: Judged, whole: bool) -> None:
    for number, (name, data) in enumerate(events):
        frame = json.loads(data)
        if frame["type"] != name:
            raise Invalid(f"an event {name} that is a {frame['type']}")
        match name:
            case "content_block_delta":
                text = frame["delta"].get("text", "")
                judged.texts[0] = judged.texts.get(0, "") + text
            case "error":
                judged.error = _anthropic(frame)
            case "message_stop":
                judged.finished += 1
        if name in ("error", "message_stop") and number != len(events) - 1:
            raise Invalid(f"something after {name}")
    if whole and (not events or events[-1][0] not in ("error", "message_stop")):
        raise Invalid("neither message_stop nor an error at the end")


def _read_responses(events: list[tuple[str, str]], judged: Judged, whole: bool) -> None:
    last = ("response.completed", "response.incomplete", "response.failed")
    for number, (name, data) in enumerate(events):
        frame = json.loads(data)
        if frame["type"] != name or frame["sequence_number"] != number:
            raise Invalid(f"an event {name} out of order")
        match name:
            case "response.output_text.delta":
                judged.texts[0] = judged.texts.get(0, "") + frame["delta"]
            case "error":
                judged.error = _openai(frame["error"])
            case "response.failed":
                if judged.error is None:
                    raise Invalid("failed, and no error")
            case "response.completed":
                judged.finished += 1
        if name in last and number != len(events) - 1:
            raise Invalid(f"something after {name}")
    if whole and (not events or events[-1][0] not in last):
        raise Invalid("no last event")


def _read_object(plan: Plan, body: dict[str, Any], judged: Judged) -> None:
    match plan.api:
        case "chat":
            judged.texts = {c["index"]: c["message"]["content"] for c in body["choices"]}
            judged.finished = len(body["choices"])
        case "completions":
            judged.texts = {c["index"]: c["text"] for c in body["choices"]}
            judged.finished = len(body["choices"])
        case "messages":
            judged.texts[0] = "".join(block["text"] for block in body["content"])
            judged.finished = 1
        case "responses":
            parts = (part for item in body["output"] for part in item["content"])
            judged.texts[0] = "".join(part["text"] for part in parts)
            judged.finished = int(body["status"] == "completed")


def transcript(seen: Seen, judged: Judged) -> str:
    """All of one stream, for whoever looks for the cause."""
    plan = seen.plan
    faults = ", ".join(
        f"{fault.kind} at request {fault.attempt}{'+' * fault.always} after {fault.after} deltas"
        for fault in plan.faults
    )
    told = [
        f"{plan.api}, mode {plan.mode}, {'streamed' if plan.stream else 'at once'}, "
        f"n={plan.choices}, the client {plan.client}",
        f"upstream: {faults or 'no fault'}; {plan.continuing or 'continues'}",
        f"aligner: {plan.aligner_fault or 'no fault'} at review {plan.at_review}"
        f"{' and after' if plan.aligner_always else ''}",
        f"expected: {plan.expected!r}",
        f"{seen.how}, status {seen.status}, {seen.ended - seen.began:.2f} s",
        *(f"choice {index}: {text!r}" for index, text in judged.texts.items()),
        f"error: {judged.error}; verdict: {judged.fault or 'valid'}",
    ]
    return "\n".join(told)
