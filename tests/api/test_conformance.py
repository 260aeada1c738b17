"""Streams recorded byte by byte and read by a strict parser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Chunking, Fault, Rule
from tests.api.proxy import QUESTION, REPLY, proxy, replacing, settings
from tests.fakes import FunctionAligner
from tests.servers import serve
from tests.strict import Event, Reader, chat, events

MODES = ("stream", "whole", "shadow", "off")


class Raw:
    """An upstream that sends these bytes, in these pieces."""

    def __init__(self, pieces: list[bytes], content_type: str = "text/event-stream") -> None:
        self.pieces = pieces
        self.content_type = content_type

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        answer: Response
        if request.method == "GET":
            answer = JSONResponse({"object": "list", "data": [{"id": "m"}]})
        else:
            await request.body()
            answer = StreamingResponse(self._said(), media_type=self.content_type)
        await answer(scope, receive, send)

    async def _said(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def lines(newline: str, *, comments: bool, multi: bool) -> bytes:
    """A stream as odd servers send it."""
    said = []
    for frame in (chunk("One. "), chunk("Two."), chunk(finish="stop")):
        text = orjson.dumps(frame, option=orjson.OPT_INDENT_2 if multi else None).decode()
        if comments:
            said.append(": still here")
        said += [f"data: {line}" for line in text.split("\n")]
        said.append("")
    said += ["data: [DONE]", "", ""]
    return newline.join(said).encode()


async def record(address: str, body: dict[str, Any]) -> list[bytes]:
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=30) as client:
        sent = {"model": "m", "messages": QUESTION, "stream": True, **body}
        async with client.stream("POST", "/v1/chat/completions", json=sent) as answer:
            assert answer.status_code == 200, await answer.aread()
            return [piece async for piece in answer.aiter_raw()]


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("comments", "multi"), [(False, False), (True, True)])
async def test_whatever_the_upstreams_lines_ours_are_valid(
    mode: str, newline: str, comments: bool, multi: bool
) -> None:
    data = lines(newline, comments=comments, multi=multi)
    upstream = Raw([data[at : at + 7] for at in range(0, len(data), 7)])
    async with serve(upstream) as behind:
        app = create_app(settings(behind), aligner=FunctionAligner())
        async with serve(app) as address:
            got = await record(address, {"stream_aligner": {"mode": mode}})
    if mode == "off":  # the upstream's own, passed through
        found = events(got)
        assert found[-1].data == "[DONE]"
        text = "".join(
            orjson.loads(e.data)["choices"][0]["delta"].get("content", "") for e in found[:-1]
        )
        assert text == "One. Two."
        return
    choices, error = chat(events(got))
    assert error is None
    assert choices[0].text == "One. Two."


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES[:3])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("usage", [False, True])
async def test_every_frame_of_an_aligned_stream_is_as_clients_expect(
    mode: str, n: int, usage: bool
) -> None:
    fields: dict[str, Any] = {"n": n, "stream_aligner": {"mode": mode, "provenance": True}}
    if usage:
        fields["stream_options"] = {"include_usage": True}
    rule = Rule(REPLY, reasoning="Let me see.", chunk=Chunking("random", 5, 3))
    async with proxy(rule, aligner=replacing(eats="She eats two.")) as p:
        got = await record(p.address, {"model": "scripted", **fields})
    choices, error = chat(events(got), usage=usage)
    assert error is None
    assert sorted(choices) == list(range(n))
    if mode == "stream":
        assert "She eats two." in choices[0].text


@pytest.mark.anyio
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_breaks_ends_with_one_error_frame(n: int) -> None:
    async with proxy(Rule(REPLY, fault=Fault(error_after=6)), alignment={"max_resumes": 0}) as p:
        got = await record(p.address, {"model": "scripted", "n": n})
    choices, error = chat(events(got))
    assert error is not None
    assert all(REPLY.startswith(choice.text) for choice in choices.values())


@pytest.mark.anyio
async def test_a_failed_review_ends_with_one_error_frame() -> None:
    def judge(review: Review) -> Verdict:
        if "So 2" in review.sentence:
            raise RuntimeError("broken")
        return Verdict()

    async with proxy(aligner=FunctionAligner(judge)) as p:
        got = await record(p.address, {"model": "scripted"})
    choices, error = chat(events(got))
    assert error is not None
    assert error["code"] == "review_failed"
    assert choices[0].text.rstrip() == "Anna has 3 apples. She eats one."


# --- the parser itself ---------------------------------------------------------------------------


@given(st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(1, 9), max_size=40))
def test_the_strict_reader_gives_the_same_however_the_bytes_are_cut(
    newline: str, cuts: list[int]
) -> None:
    said = newline.join(
        (": hello", "event: a", "data: one", "data:  two", "", "", "data: drei ✓", "")
    )
    data = (said + newline).encode()
    reader, found, at = Reader(), [], 0
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[at : at + cut])
        at += cut
    found += reader.feed(b"" if newline != "\r" else b": end\n")
    reader.close()
    assert found == [Event("one\n two", "a"), Event("drei ✓")]


def bad(change: Callable[[list[Event]], list[Event]]) -> list[Event]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    frames = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in (({"role": "assistant"}, None), ({"content": "a"}, None), ({}, "stop"))
    ]
    good = [Event(orjson.dumps(frame).decode()) for frame in frames] + [Event("[DONE]")]
    chat(good)
    return change(good)


@pytest.mark.parametrize(
    "change",
    [
        lambda good: good[:-1],
        lambda good: [*good, good[-1]],
        lambda good: good[1:],
        lambda good: [good[0], *good],
        lambda good: [*good[:3], good[1], good[3]],
        lambda good: [*good[:2], good[3]],
        lambda good: [Event(good[0].data.replace('"delta"', '"text"')), *good[1:]],
        lambda good: [good[0], Event(good[1].data.replace('"c"', '"d"')), *good[2:]],
    ],
)
def test_the_strict_reader_sees_what_is_wrong(
    change: Callable[[list[Event]], list[Event]],
) -> None:
    with pytest.raises((AssertionError, KeyError)):
        chat(bad(change))
