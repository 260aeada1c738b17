"""Embeddings and the like: passed through by model, bytes as they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from stream_aligner_proxy.api.forwarded_body import read
from stream_aligner_proxy.api.forwarding import PATHS
from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import RequestError
from tests.api.proxy import PATIENT, error_of, proxy, settings
from tests.api.test_native import proxied
from tests.fakes import FunctionAligner
from tests.servers import serve
from tests.upstream.test_native import MODELS

SOUND = bytes(range(256)) * 300
JSON = {"model": "a/one", "input": ["x"], "big": 12345678901234567890.5}


@dataclass
class Offering:
    """Serves `models`, and answers every POST: JSON that repeats the model; sound under
    `audio/speech`, in pieces; an error where it is told one."""

    models: Sequence[str]
    refuse: int = 0
    breaks: bool = False
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    holds: bool = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"data": [{"id": id} for id in self.models]})
        body = await request.body()
        self.seen.append((request.url.path, dict(request.headers), body))
        if self.refuse:
            error = {"message": "no", "type": "odd", "code": "theirs", "param": "input"}
            headers = {"retry-after": "3", "x-request-id": "up-1"}
            return JSONResponse({"error": error}, self.refuse, headers)
        headers = {"x-request-id": "up-1", "set-cookie": "a=b", "openai-version": "v"}
        if request.url.path.endswith("speech"):
            return StreamingResponse(self._sound(), headers=headers, media_type="audio/mpeg")
        if request.headers["content-type"] == "application/json":
            told = {"model": orjson.loads(body).get("model"), "data": [1.5]}
        else:
            told = {"text": "written down"}
        return JSONResponse(told, headers=headers)

    async def _sound(self) -> AsyncIterator[bytes]:
        try:
            for at in range(0, len(SOUND), 1000):
                yield SOUND[at : at + 1000]
                if self.breaks:
                    raise ConnectionAbortedError
                if self.holds:
                    await asyncio.Event().wait()
        finally:
            self.gone.set()


@asynccontextmanager
async def offering(*servers: Offering, **sections: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a proxy in front of these, called a, b, …"""
    async with AsyncExitStack() as stack:
        upstreams = []
        for name, server in zip("abc", servers, strict=False):
            address = await stack.enter_async_context(serve(server))
            upstreams.append(
                {"name": name, "base_url": f"{address}/v1", "timeouts": PATIENT, "probe": False}
                | {"dialect": "openai"}
            )
        app = create_app(settings("", upstreams=upstreams, **sections), aligner=FunctionAligner())
        address = await stack.enter_async_context(serve(app))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=address))


@pytest.mark.anyio
@pytest.mark.parametrize("path", PATHS)
async def test_a_request_goes_to_the_upstream_of_its_model_byte_for_byte(path: str) -> None:
    a, b = Offering(["a/one"]), Offering(["b"])
    content = b'{ "model":"b", "input" : [1.50] }'
    sent = {"content-type": "application/json", "authorization": "Bearer k", "cookie": "c=d"}
    async with offering(a, b) as client:
        answer = await client.post(f"/v1/{path}", content=content, headers=sent)
    assert answer.status_code == 200
    assert not a.seen
    [(where, headers, body)] = b.seen
    assert (where, body) == (f"/v1/{path}", content)
    assert headers["authorization"] == "Bearer k"
    assert "cookie" not in headers
    assert headers["x-request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert answer.headers["openai-version"] == "v"
    assert answer.headers["x-stream-aligner-upstream"] == "b"
    assert "set-cookie" not in answer.headers


@pytest.mark.anyio
async def test_sound_comes_back_in_pieces_with_its_type() -> None:
    async with offering(Offering(["a/one"])) as client:
        answer = await client.post("/v1/audio/speech", json={"model": "a/one", "input": "hi"})
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.content == SOUND


@pytest.mark.anyio
async def test_a_form_is_passed_on_as_it_is() -> None:
    server = Offering(["a/one"])
    async with offering(server) as client:
        asked = client.build_request(
            "POST",
            "/v1/audio/transcriptions",
            data={"model": "a/one", "language": "de"},
            files={"file": ("a.mp3", SOUND, "audio/mpeg")},
        )
        content = asked.read()
        answer = await client.send(asked)
    assert answer.json() == {"text": "written down"}
    [(_, headers, body)] = server.seen
    assert headers["content-type"] == asked.headers["content-type"]
    assert body == content
    assert SOUND in body


@pytest.mark.anyio
async def test_an_alias_changes_the_name_and_nothing_else() -> None:
    server = Offering(["theirs"])
    to = [{"upstream": "a", "model": "theirs"}]
    async with offering(server, routes=[{"model": "ours", "to": to}]) as client:
        named = await client.post("/v1/embeddings", json={**JSON, "model": "ours"})
        asked = client.build_request(
            "POST",
            "/v1/images/edits",
            data={"model": "ours"},
            files={"image": ("model", SOUND)},
        )
        content = asked.read()
        await client.send(asked)
        unknown = await client.post("/v1/embeddings", json={**JSON, "model": "theirs"})
        nameless = await client.post("/v1/embeddings", json={"input": "x"})
    assert named.json()["model"] == "ours"
    assert orjson.loads(server.seen[0][2]) == {**JSON, "model": "theirs"}
    name, theirs = b"\r\n\r\nours\r\n", b"\r\n\r\ntheirs\r\n"
    assert name in content
    assert server.seen[1][2] == content.replace(name, theirs)
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"
    assert error_of(nameless)["code"] == "missing_required_parameter"


@pytest.mark.anyio
async def test_weights_share_the_requests() -> None:
    a, b = Offering(["m"]), Offering(["m"])
    to = [{"upstream": "a"}, {"upstream": "b"}]
    async with offering(a, b, routes=[{"model": "m", "to": to}]) as client:
        for number in range(40):
            headers = {"x-request-id": f"request-{number}"}
            await client.post("/v1/embeddings", json={"model": "m"}, headers=headers)
    assert len(a.seen) + len(b.seen) == 40
    assert a.seen
    assert b.seen


@pytest.mark.anyio
async def test_another_upstream_is_asked_where_the_first_fails() -> None:
    a, b = Offering(["m"], refuse=503), Offering(["m"])
    route = {"model": "m", "to": [{"upstream": "a"}], "fallback": [{"upstream": "b"}]}
    async with offering(a, b, routes=[route]) as client:
        answer = await client.post("/v1/rerank", json={"model": "m", "query": "q"})
    assert answer.status_code == 200
    assert len(b.seen) == 1


@pytest.mark.anyio
async def test_without_a_name_the_only_upstream_is_asked_and_of_two_none() -> None:
    server = Offering(["a/one"])
    async with offering(server) as client:
        assert (await client.post("/v1/moderations", json={"input": "x"})).status_code == 200
    assert orjson.loads(server.seen[0][2]) == {"input": "x"}
    async with offering(Offering(["a/one"]), Offering(["b"])) as client:
        refused = await client.post("/v1/moderations", json={"input": "x"})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "model"


@pytest.mark.anyio
async def test_refusals_are_told_as_those_of_a_chat() -> None:
    async with offering(Offering(["a/one"], refuse=429)) as client:
        refused = await client.post("/v1/embeddings", json=JSON)
    assert refused.status_code == 429
    assert error_of(refused) == {"message": "no", "type": "odd", "param": "input", "code": "theirs"}
    assert refused.headers["retry-after"] == "3"
    assert refused.headers["x-upstream-request-id"] == "up-1"


@pytest.mark.anyio
async def test_an_answer_that_breaks_off_does_not_look_whole() -> None:
    async with offering(Offering(["a/one"], breaks=True)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/audio/speech", json={"model": "a/one"})
        metrics = (await client.get("/metrics")).text
    assert 'replies_total{mode="off",outcome="upstream_garbled"} 1.0' in metrics


@pytest.mark.anyio
async def test_leaving_ends_the_upstreams_request() -> None:
    server = Offering(["a/one"], holds=True)
    async with offering(server) as client:
        asked = client.stream("POST", "/v1/audio/speech", json={"model": "a/one"})
        async with asked as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(5):
            await server.gone.wait()


@pytest.mark.anyio
async def test_an_upstream_with_another_api_is_a_404_that_says_so() -> None:
    async with proxied("anthropic") as (client, _):
        with pytest.raises(openai.NotFoundError, match="does not speak OpenAI's API"):
            await client.embeddings.create(model=MODELS["anthropic"], input="x")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "content_type", "status", "param"),
    [
        (b"{", "application/json", 400, None),
        (b'{"model": 3}', "application/json", 400, "model"),
        (b'{"model": ""}', "application/json", 400, "model"),
        (b'{"model": "b/two", "model": "a/one"}', "application/json", 400, "model"),
        (b'{"model": "a/one", "Model" : "b/two"}', "application/json", 400, "model"),
        (b'{"\\u006dodE\\u004C": "b/two"}', "application/json", 400, "model"),
        (b"x", "text/plain", 415, None),
        (b"x", "multipart/form-data", 400, None),
        (b"x", "multipart/form-data; boundary=b", 400, None),
        (b"--b\r\n", "multipart/form-data; boundary=b", 400, None),
    ],
)
async def test_what_cannot_be_read_is_refused(
    content: bytes, content_type: str, status: int, param: str | None
) -> None:
    server = Offering(["a/one"])
    async with offering(server) as client:
        headers = {"content-type": content_type}
        refused = await client.post("/v1/embeddings", content=content, headers=headers)
    assert refused.status_code == status
    assert error_of(refused)["param"] == param
    assert not server.seen


@pytest.mark.anyio
async def test_a_form_above_the_limit_is_a_413() -> None:
    async with offering(Offering(["a/one"]), server={"max_body_bytes": 2000}) as client:
        files = {"file": ("a.mp3", SOUND)}
        refused = await client.post("/v1/audio/transcriptions", data={"model": "a"}, files=files)
    assert refused.status_code == 413


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["files", "embeddings/", "embeddings/../files", "audio/%2e%2e/files", "audio", "batches"],
)
async def test_no_other_address_exists(path: str) -> None:
    server = Offering(["a/one"])
    async with offering(server) as client:
        answer = await client.post(f"/v1/{path}", json=JSON)
    assert answer.status_code in (404, 405)
    assert not server.seen


def form(*parts: tuple[bytes, bytes], boundary: bytes = b"b") -> bytes:
    told = b"".join(
        b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + value
        + b"\r\n"
        for head, value in parts
    )  # fmt: skip
    return told + b"--" + boundary + b"--\r\n"


FORM = "multipart/form-data; boundary=b"


def test_only_the_field_called_model_names_it() -> None:
    content = form(
        (b'name="file"; filename="x; name=model"', b'\r\nname="model"\r\n\r\nno'),
        (b"name=model", b"yes"),
    )
    assert read(content, FORM).model == "yes"
    assert read(b"preamble" + b"\r\n" + content, FORM).model == "yes"
    assert read(form((b'name="models"', b"no")), FORM).model is None


@pytest.mark.parametrize(
    "content",
    [
        form((b"name=model", b"a"), (b"name=model", b"b")),
        form((b"name=model", b"")),
        form((b"name=model", b"\xff")),
    ],
)
def test_a_form_that_names_no_one_model_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        read(content, FORM)
    assert refused.value.param == "model"


def test_a_model_within_the_body_is_not_its_model() -> None:
    content = b'{"input": ["\\"model\\": 1"], "model": "a/one", "user": {"model": 2, "Model": 3}}'
    assert read(content, "application/json").model == "a/one"


@given(
    st.binary(max_size=40).filter(lambda value: b"\r\n--b" not in b"\r\n" + value + b"\r\n"),
    st.text("abc/é", min_size=1),
    st.text("xyz", min_size=1),
)
def test_renaming_touches_nothing_but_the_name(value: bytes, model: str, other: str) -> None:
    parts = [(b'name="file"', value), (b'name="model"', model.encode()), (b'name="n"', value)]
    body = read(form(*parts), FORM)
    assert body.model == model
    assert body.naming(model) == body.content
    parts[1] = (parts[1][0], other.encode())
    assert body.naming(other) == form(*parts)


@given(st.binary(max_size=60), st.sampled_from((FORM, "multipart/form-data; boundary=\r")))
def test_no_form_at_all_makes_it_fall_over(content: bytes, content_type: str) -> None:
    for body in (content, b"--b" + content, form((b"name=model", content))):
        with contextlib.suppress(RequestError):
            assert read(body, content_type).content == body


@pytest.mark.anyio
async def test_models_with_slashes_are_found_and_other_methods_are_answered() -> None:
    async with offering(Offering(["a/one", "b:free"])) as client:
        found = [await client.get(f"/v1/models/{id}") for id in ("a/one", "a%2Fone", "b:free")]
        head = await client.head("/v1/models/a/one")
        many = await client.head("/v1/models")
        options = await client.options("/v1/models")
        missing = await client.get("/v1/models/a/two")
    assert [answer.json()["id"] for answer in found] == ["a/one", "a/one", "b:free"]
    assert (head.status_code, head.content) == (200, b"")
    assert (many.status_code, many.content) == (200, b"")
    assert options.status_code == 405
    assert options.headers["allow"]
    assert error_of(missing)["code"] == "model_not_found"


@pytest.mark.anyio
async def test_the_document_tells_of_all_routes() -> None:
    async with proxy() as p:
        document = (await p.client.get("/openapi.json")).json()
    for path in ("completions", "align", *PATHS):
        assert document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    assert {"CompletionBody", "AlignBody", "AlignItem", "ChatBody"} <= set(schemas)
