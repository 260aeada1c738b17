"""The upstream that misbehaves as the plan of each stream says: raw HTTP, so that it can.

It continues a partial message (of a chat) or a prompt where its text ends. It counts connections
and replies that are open, so that a connection which nobody closes shows.
"""

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bench.faulty.plan import HEAD, REFUSALS, Fault, Plan, asked, deltas, rest

_IDLE_SECONDS = 2.0  # then a kept connection is closed, as servers do
_STALL_SECONDS = 30.0
_HUGE = 5 * 1024 * 1024  # more than one event may have
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ERRORS = {
    "429": (429, "slow down", {"retry-after": "0"}),
    "429-later": (429, "slow down", {"retry-after": "60"}),
    "500": (500, "<html>oops</html>", {}),
    "503": (503, "not now", {}),
    "404": (404, "no such thing", {}),
    "422": (422, "not understood", {}),
    "401": (401, "who are you", {}),
    "400": (400, "cannot continue a message", {}),
}
_BROKEN = {
    "bad-chunk": b"zz\r\nnot a size\r\n",
    "bad-json": b'data: {"choices": [{"delta": {"con\n\n',
    "bad-utf8": b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3"}}]}\n\n',
    "no-object": b"data: [1, 2]\n\n",
    "huge-line": b'data: {"choices":[{"index":0,"delta":{"content":"' + b"z" * _HUGE,
    "error-frame": b'data: {"error":{"message":"out of memory","type":"server","code":500}}\n\n',
}


class _Gone(Exception):
    """The connection has been ended on purpose."""


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    body: Mapping[str, Any]


class FaultyUpstream:
    """`opened`: connections there are, `writing`: replies being written, `attempts`: requests of
    each stream so far, by seed and number; `worst`: the most connections there were."""

    def __init__(self) -> None:
        self.attempts: Counter[tuple[int, int]] = Counter()
        self.opened = self.worst = self.writing = 0
        self.done: Counter[str] = Counter()  # faults that have been shown
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its address, `/v1` included."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.close()
            for task in list(self._serving):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.opened += 1
        self.worst = max(self.worst, self.opened)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, _Gone, TimeoutError):
                while request := await _read(reader):
                    await self._answer(request, reader, writer)
        finally:
            self.opened -= 1
            self._serving.discard(task)
            writer.transport.abort()

    async def _answer(
        self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if request.path.endswith("/models"):
            _whole(writer, 200, {"object": "list", "data": [{"id": "common", "object": "model"}]})
            return
        prompt, prefix = _said(request.body)
        found = asked(prompt)
        if found is None or not request.path.endswith("completions"):  # `/tokenize`, for instance
            _whole(writer, 404, {"error": {"message": "no such path"}})
            return
        made, more = found
        key = made.seed, made.number
        attempt, self.attempts[key] = self.attempts[key], self.attempts[key] + 1
        self.writing += 1
        # Whoever leaves has what is being written to it stopped.
        try:
            async with asyncio.TaskGroup() as group:
                gone = group.create_task(_gone(reader))
                await self._reply(made, attempt, request, more or prefix, writer)
                gone.cancel()
        except* (OSError, RuntimeError, _Gone):  # uvloop says the second of a closed transport
            raise _Gone from None
        finally:
            self.writing -= 1

    async def _reply(
        self,
        made: Plan,
        attempt: int,
        request: _Request,
        prefix: str,
        writer: asyncio.StreamWriter,
    ) -> None:
        kind = self._way_of_continuing(made, request, prefix)
        if kind == "400":
            _error(writer, "400")
            return
        text = made.original if kind == "begins-again" else rest(made, prefix)
        fault = made.fault(attempt)
        if fault is not None:
            self.done[fault.kind] += 1
            if fault.kind in REFUSALS:
                _error(writer, fault.kind)
                return
            if fault.kind in HEAD:
                await _break_the_head(fault.kind, writer)
        dice = random.Random(f"{made.seed}:{made.number}:{attempt}")
        if not request.body.get("stream"):
            await _at_once(text, request, fault, writer)
            return
        await _stream(deltas(dice, text), made.pace, request, fault, writer)

    def _way_of_continuing(self, made: Plan, request: _Request, prefix: str) -> str:
        if not prefix or not made.continuing:
            return ""
        told = request.body.get("messages", [{}])[-1].get("role") == "user"
        if made.continuing == "begins-again":
            self.done["begins-again"] += 1
            return "begins-again"
        if made.continuing == "refuses-prefill" and told:
            return ""
        self.done[made.continuing] += 1
        return "400"


async def _read(reader: asyncio.StreamReader) -> _Request | None:
    async with asyncio.timeout(_IDLE_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
    line, _, fields = head.decode("latin-1").partition("\r\n")
    length = 0
    for field in fields.split("\r\n"):
        name, _, value = field.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    body = await reader.readexactly(length)
    return _Request(line.split(" ")[1], json.loads(body) if body else {})


def _said(body: Mapping[str, Any]) -> tuple[str, str]:
    """The question and, in a chat, the partial message after it."""
    if "messages" not in body:
        return str(body.get("prompt", "")), ""
    question = prefix = ""
    for message in body["messages"]:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if message["role"] == "assistant":
            prefix = text
        elif asked(text) is not None:
            question = text
    return question, prefix


async def _gone(reader: asyncio.StreamReader) -> None:
    """Raises when the other side ends the connection. Nobody sends two requests at once."""
    if not await reader.read(1):
        raise _Gone


def _whole(
    writer: asyncio.StreamWriter,
    status: int,
    body: object,
    headers: Mapping[str, str] | None = None,
) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {kind}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"content-length: {len(content)}", "", ""]
    writer.write("\r\n".join(lines).encode() + content)


def _error(writer: asyncio.StreamWriter, kind: str) -> None:
    status, message, headers = _ERRORS[kind]
    body = message if message.startswith("<") else {"error": {"message": message}}
    _whole(writer, status, body, headers)


async def _break_the_head(kind: str, writer: asyncio.StreamWriter) -> None:
    match kind:
        case "reset-head":
            _reset(writer)
        case "fin-head":
            writer.close()
        case "no-http":
            writer.write(b"\x00\xff* OK IMAP4 ready\r\n\r\n")
            writer.close()
        case "json-cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b'content-length: 400\r\n\r\n{"choices": [{"message"')
            writer.close()
        case "stall-first":
            writer.write(_STREAM_HEAD)
            await asyncio.sleep(_STALL_SECONDS)
        case "stall-head":
            await asyncio.sleep(_STALL_SECONDS)
    raise _Gone


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    told: socket.socket = writer.get_extra_info("socket")
    told.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _at_once(
    text: str, request: _Request, fault: Fault | None, writer: asyncio.StreamWriter
) -> None:
    """For requests that pass through."""
    message: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if request.path.endswith("/v1/completions"):
        message = {"text": text}
    choice = {"index": 0, **message, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "model": "common", "choices": [choice]}
    if fault is not None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: 100000\r\n\r\n" + json.dumps(body).encode()[:-2])
        writer.close()
        raise _Gone
    _whole(writer, 200, body)


async def _stream(
    pieces: list[str],
    pace: float,
    request: _Request,
    fault: Fault | None,
    writer: asyncio.StreamWriter,
) -> None:
    chat = "messages" in request.body
    writer.write(_STREAM_HEAD)
    for number, piece in enumerate(pieces):
        if fault is not None and number == fault.after:
            await _break(fault.kind, _event(chat, piece), writer)
        writer.write(_chunk(_event(chat, piece)))
        if pace or number % 16 == 0:
            await writer.drain()
            await asyncio.sleep(pace)
    if fault is not None:
        # A text that is shorter than the fault comes late.
        await _break(fault.kind, _event(chat, "zz"), writer)
    writer.write(_chunk(_event(chat, "", "stop")))
    if fault is not None:
        await writer.drain()
        await asyncio.sleep(0.01)
        if fault.kind == "reset-after-finish":
            _reset(writer)
        else:
            writer.close()
        raise _Gone
    count = len(pieces)
    usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
    last = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    writer.write(_chunk(b"data: " + json.dumps(last).encode() + b"\n\n"))
    writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


async def _break(kind: str, event: bytes, writer: asyncio.StreamWriter) -> None:
    """Ends the connection, unless the fault belongs to the end of the reply."""
    match kind:
        case "reset":
            await asyncio.sleep(0.005)  # or what was written would be lost with it
            _reset(writer)
        case "reset-in-event":
            writer.write(_chunk(event[: len(event) // 2]))
            await writer.drain()
            await asyncio.sleep(0.005)
            _reset(writer)
        case "fin":
            writer.write_eof()  # half-closed: this side still listens
            await asyncio.sleep(_STALL_SECONDS)
        case "stall":
            await asyncio.sleep(_STALL_SECONDS)
        case "no-finish":
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            writer.close()
        case "bad-chunk":
            writer.write(_BROKEN[kind])
            await asyncio.sleep(_STALL_SECONDS)
        case "reset-after-finish" | "fin-after-finish":
            return
        case _:
            writer.write(_chunk(_BROKEN[kind]))
            await writer.drain()
            await asyncio.sleep(_STALL_SECONDS)
    raise _Gone


def _event(chat: bool, text: str, finish: str | None = None) -> bytes:
    """With a mark of the upstream's own in every frame; nothing of it may pass."""
    said: dict[str, Any] = {"delta": {"content": text} if text else {}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
    frame = {"id": "x", "object": "chunk", "created": 1, "model": "common", "choices": [choice]}
    return b"data: " + json.dumps(frame, ensure_ascii=False).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
