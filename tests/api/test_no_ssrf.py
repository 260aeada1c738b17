"""Nothing in a request changes where the proxy connects, and only listed headers go on."""

import asyncio
from typing import Any

import httpx
import pytest

from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import REPLY, proxy
from tests.api.test_access import ASKED

pytestmark = pytest.mark.anyio

FIELDS = ("base_url", "api_base", "url", "endpoint", "host", "upstream", "proxy", "callback_url")
HEADERS = (
    "x-forwarded-host",
    "x-original-url",
    "x-rewrite-url",
    "forwarded",
    "referer",
    "x-target",
)
# What reaches the upstream, and what comes back, at most.
SENT = {"accept", "accept-encoding", "content-length", "content-type", "host", "user-agent"}
SENT |= {"x-request-id", "authorization", "traceparent", "tracestate"}
SENT |= {"openai-organization", "openai-project"}
RETURNED = {"content-type", "content-length", "date", "transfer-encoding", "cache-control"}
RETURNED |= {"x-request-id", "request-id", "x-upstream-request-id", "x-accel-buffering"}
RETURNED |= {"openai-processing-ms", "openai-version", "retry-after"}


@pytest.mark.parametrize("dialect", ["vllm", "gemini", "anthropic", "azure"])
async def test_no_field_or_header_leads_the_proxy_elsewhere(dialect: str) -> None:
    """A trap listens; every address that a request can hold is the trap's."""
    caught: list[None] = []

    async def trap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caught.append(None)
        writer.close()

    async with (
        await asyncio.start_server(trap, "127.0.0.1", 0) as listening,
        proxy(upstream={"dialect": dialect}) as p,
    ):
        port = listening.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        models = [url, f"@127.0.0.1:{port}/x", f"../../{url}", f"//127.0.0.1:{port}", "a?b=c#d"]
        models += [f"scripted\r\nhost: 127.0.0.1:{port}", f"%2f%2f127.0.0.1:{port}", "scripted"]
        extra = dict.fromkeys(FIELDS, url)
        headers = dict.fromkeys(HEADERS, url) | {"host": f"127.0.0.1:{port}"}
        for path, body in ASKED.items():
            for model in models:
                for mode in ("stream", "off"):
                    fields: dict[str, Any] = {**extra, "stream_aligner": {"mode": mode}}
                    if path == "/v1/align":
                        fields = {}
                    sent = body | {"model": model} | fields
                    answer = await p.client.post(path, json=sent, headers=headers)
                    assert answer.status_code < 600
        # The whole address in the request's first line, as for a forward proxy.
        reader, writer = await asyncio.open_connection(
            *p.address.removeprefix("http://").split(":")
        )
        writer.write(
            f"GET {url}/v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode()
        )
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
    assert not caught


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_only_listed_headers_go_up_and_only_listed_ones_come_back(
    mode: str, stream: bool, status: int
) -> None:
    theirs = {
        "set-cookie": "session=1",
        "server": "internal-7",
        "x-internal": "10.0.0.7",
        "location": "http://127.0.0.1:1/",
        "www-authenticate": "Bearer",
        "access-control-allow-origin": "*",
        "openai-version": "1",
    }
    mine = dict.fromkeys((*HEADERS, "cookie", "x-api-key", "x-secret", "via"), "10.0.0.9")
    fault = Fault(headers=theirs) if status == 200 else Fault(status=status, headers=theirs)
    async with proxy(Rule(REPLY, fault=fault)) as p:
        answer = await p.post(headers=mine, stream=stream, stream_aligner={"mode": mode})
        assert answer.status_code in (200, status)
        [request, *_] = p.upstream.requests
    assert set(request.headers) <= SENT
    told = {name for name in answer.headers if not name.startswith("x-stream-aligner-")}
    assert told <= RETURNED | {"server"}
    assert answer.headers.get("server") != "internal-7"
    assert isinstance(answer, httpx.Response)
