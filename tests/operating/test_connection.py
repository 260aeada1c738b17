"""What a client's connection may take, with real sockets before a real command."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import trustme
import yaml

from stream_aligner_proxy.operating.connection import HeadLimits, connections
from tests.operating.processes import Serving, ask, body, serving, text, upstream, write_config
from tests.servers import serve

pytestmark = pytest.mark.anyio

ASK = orjson.dumps(body(stream=False))
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: p\r\ncontent-type: application/json\r\n"
    b"content-length: " + str(len(ASK)).encode() + b"\r\n"
)


@asynccontextmanager
async def served(folder: Path, **server: object) -> AsyncIterator[Serving]:
    async with upstream() as (_, address):
        config = write_config(folder, address, **server)
        async with serving(config) as running:
            yield running


class Raw:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def closed(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def connected(running: Serving | str) -> AsyncIterator[Raw]:
    address = running if isinstance(running, str) else running.address
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def trickle(raw: Raw, data: bytes) -> None:
    """A byte at a time, for ever slower than the server waits."""
    for byte in data * 1000:
        if raw.writer.is_closing():
            return
        raw.writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_who_is_slow_is_cut_off_and_who_is_not_is_served(tmp_path: Path) -> None:
    async with served(tmp_path, head_seconds=0.5, body_seconds=0.5) as running:
        async with connected(running) as silent:
            assert await silent.closed() == b""
        async with connected(running) as slow_head:
            slow_head.writer.write(HEAD)
            trickling = asyncio.create_task(trickle(slow_head, b"x-more: yes\r\n"))
            status, said = await slow_head.answer()
            assert (status, orjson.loads(said)["error"]["code"]) == (408, "request_timeout")
            assert await slow_head.closed() == b""
            trickling.cancel()
        async with connected(running) as slow_body:
            slow_body.writer.write(HEAD + b"\r\n")
            trickling = asyncio.create_task(trickle(slow_body, b" "))
            status, said = await slow_body.answer()
            assert (status, orjson.loads(said)["error"]["code"]) == (408, "request_timeout")
            trickling.cancel()
        async with connected(running) as newlines:
            trickling = asyncio.create_task(trickle(newlines, b"\r\n"))
            await newlines.closed()
            trickling.cancel()
        async with connected(running) as patient:
            for _ in range(2):  # a reply, and another one on the same connection
                patient.writer.write(HEAD + b"\r\n" + ASK)
                assert (await patient.answer())[0] == 200
            patient.writer.write(HEAD[:20])
            await asyncio.sleep(0.1)
            patient.writer.write(HEAD[20:] + b"\r\n" + ASK[:9])
            await asyncio.sleep(0.1)
            patient.writer.write(ASK[9:])
            assert (await patient.answer())[0] == 200
        async with httpx.AsyncClient(base_url=running.address) as client:
            assert (await client.get("/healthz")).status_code == 200


async def test_a_long_reply_is_not_cut_by_the_requests_limits(tmp_path: Path) -> None:
    async with upstream() as (scripted, address):
        config = write_config(tmp_path, address, head_seconds=0.3, body_seconds=0.3)
        async with serving(config) as running, httpx.AsyncClient(base_url=running.address) as c:
            task = asyncio.create_task(ask(c, "hold"))
            await scripted.until(lambda upstream: upstream.opened == 1)
            await asyncio.sleep(1.0)
            scripted.release()
            assert text(await task)


async def test_a_head_that_is_too_large_is_refused_before_it_has_ended(tmp_path: Path) -> None:
    async with served(tmp_path, max_header_bytes=2048, max_headers=20) as running:
        for head in (
            HEAD + b"x-long: " + b"a" * 3000 + b"\r\n\r\n",
            HEAD + b"".join(b"x-%d: a\r\n" % n for n in range(30)) + b"\r\n",
            b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: p\r\n\r\n",
        ):
            async with connected(running) as raw:
                raw.writer.write(head)
                status, said = await raw.answer()
                assert (status, orjson.loads(said)["error"]["code"]) == (431, "headers_too_large")
        async with connected(running) as endless:
            endless.writer.write(HEAD + b"x-endless: ")
            said = b""
            # What it does not read it may answer with a reset.
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(20):
                    for _ in range(10_000):  # 10 MB: it is not taken
                        if endless.reader.at_eof() or endless.writer.is_closing():
                            break
                        endless.writer.write(b"a" * 1024)
                        await asyncio.sleep(0)
                    said = await endless.closed()
            assert b"431" in said or said == b""
        async with connected(running) as fine:
            fine.writer.write(HEAD + b"x-long: " + b"a" * 1000 + b"\r\n\r\n" + ASK)
            assert (await fine.answer())[0] == 200


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS where there is none
    b"hello\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nhost: p\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
)


async def test_what_is_no_http_is_refused_in_the_words_of_the_api() -> None:
    held = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):  # until it has come, or never comes
                pass
            if scope["path"] == "/":
                return
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"fi", "more_body": True})
        await held.wait()
        await send({"type": "http.response.body", "body": b"ne"})

    async with serve(app, connections(HeadLimits())) as address:
        for garbage in GARBAGE:
            async with connected(address) as raw:
                raw.writer.write(garbage)
                status, said = await raw.answer()
                error = orjson.loads(said)["error"]
                assert (status, error["code"]) == (400, "invalid_http"), garbage
                assert error["type"] == "invalid_request_error"
                assert await raw.closed() == b""
        async with connected(address) as anthropic:
            anthropic.writer.write(b"POST /v1/messages HTTP/1.1\r\nno colon\r\n\r\n")
            _, said = await anthropic.answer()
            assert orjson.loads(said)["type"] == "error"
        # Behind a request whose reply is being written, it must not get into the reply.
        async with connected(address) as busy:
            busy.writer.write(b"GET / HTTP/1.1\r\nhost: p\r\n\r\n")
            assert (await busy.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            busy.writer.write(GARBAGE[1])
            assert await busy.closed() == b"fi"
        # And behind one that is over it is one more.
        held.set()
        async with connected(address) as again:
            again.writer.write(b"GET / HTTP/1.1\r\nhost: p\r\n\r\n")
            assert await again.answer() == (200, b"fine")
            again.writer.write(GARBAGE[3])
            assert (await again.answer())[0] == 400


async def test_idle_connections_are_closed_after_the_time_set(tmp_path: Path) -> None:
    async with served(tmp_path, keep_alive_seconds=1) as running, connected(running) as raw:
        raw.writer.write(HEAD + b"\r\n" + ASK)
        assert (await raw.answer())[0] == 200
        assert await raw.closed() == b""


def certificates(folder: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own = authority.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    return authority


async def test_it_serves_tls_and_can_ask_for_clients_certificates(tmp_path: Path) -> None:
    certificates(tmp_path)
    tls = {"certificate": "chain.pem", "key": "key.pem", "client_ca": "ca.pem"}
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    async with served(tmp_path, tls=tls) as running:
        assert running.address.startswith("https://")
        async with httpx.AsyncClient(base_url=running.address, verify=trust) as stranger:
            with pytest.raises(httpx.HTTPError):
                await stranger.get("/healthz")
        trust.load_cert_chain(tmp_path / "client.pem")
        async with httpx.AsyncClient(base_url=running.address, verify=trust) as client:
            assert text(await ask(client))


@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
async def test_only_trusted_proxies_say_whose_a_request_is(
    tmp_path: Path, trusted: list[str]
) -> None:
    async with upstream() as (_, address):
        config = write_config(tmp_path, address, trusted_proxies=trusted)
        data = yaml.safe_load(config.read_text())
        data["access"] = {"per_address": {"requests_per_minute": 1}}
        config.write_text(yaml.safe_dump(data))
        async with serving(config) as running, httpx.AsyncClient(base_url=running.address) as c:
            statuses = [
                (await c.get("/v1/models", headers={"x-forwarded-for": f"10.0.0.{n}"})).status_code
                for n in (1, 1, 2)
            ]
    assert statuses == ([200, 429, 200] if trusted else [200, 429, 429])


async def test_who_listens_to_all_without_keys_is_warned(tmp_path: Path) -> None:
    async with served(tmp_path, host="0.0.0.0") as running:
        await running.logged("access.mode is open")
