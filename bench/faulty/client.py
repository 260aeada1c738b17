"""One stream's client: it asks as its plan says, reads or leaves, and keeps what it has seen."""

import asyncio
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.faulty.plan import Plan

How = Literal["whole", "cut", "left", "hung", "refused", "malformed"]

_PATIENCE_SECONDS = 40.0
_PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}


@dataclass(slots=True)
class Seen:
    """`how` it was over: `whole` is an HTTP answer to its end, `cut` one whose connection was ended
    before; `refused`: there was none to connect to; `malformed`: what came is no HTTP. `body`:
    without the framing of chunks."""

    plan: Plan
    how: How = "cut"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    began: float = 0.0
    ended: float = 0.0


class _Malformed(Exception):
    pass


class Answer:
    """An HTTP answer as it comes: `feed` it, until it is `complete`."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._raw = bytearray()
        self._left: int | None = None  # of the body, or of the chunk
        self._chunked = False
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Raises `_Malformed`."""
        self._raw += data
        if self._seen.status is None and not self._take_head():
            return
        while not self.complete and self._take_body():
            pass
        if self.complete and self._raw:
            raise _Malformed("bytes after the end")

    def _take_head(self) -> bool:
        head, found, rest = bytes(self._raw).partition(b"\r\n\r\n")
        if not found:
            return False
        line, *fields = head.decode("latin-1").split("\r\n")
        named = (field.partition(":") for field in fields)
        self._seen.headers = {name.lower(): value.strip() for name, _, value in named}
        self._seen.status = int(line.split(" ")[1])
        self._raw = bytearray(rest)
        self._chunked = self._seen.headers.get("transfer-encoding") == "chunked"
        if not self._chunked:
            self._left = int(self._seen.headers["content-length"])
        return True

    def _take_body(self) -> bool:
        """Whether there may be more to take."""
        if self._chunked and self._left is None:
            size, found, _ = bytes(self._raw[:20]).partition(b"\r\n")
            if not found:
                if len(self._raw) >= 20:
                    raise _Malformed("no size of a chunk")
                return False
            del self._raw[: len(size) + 2]
            self._left = int(size, 16)
        assert self._left is not None
        end = 2 if self._chunked else 0
        if self._chunked and len(self._raw) < self._left + end:
            return False
        taken = self._raw[: self._left]
        self._seen.body += taken
        last = self._chunked and self._left == 0
        if self._chunked and self._raw[self._left : self._left + 2] != b"\r\n":
            raise _Malformed("a chunk does not end where it says")
        del self._raw[: len(taken) + end]
        self._left = None if self._chunked else self._left - len(taken)
        self.complete = last or self._left == 0
        return bool(self._raw)


def request(plan: Plan) -> bytes:
    """The bytes that are sent."""
    turns = [{"role": "user", "content": plan.question}]
    body: dict[str, Any] = {"model": plan.model, "stream": plan.stream}
    body["stream_aligner"] = {"mode": plan.mode}
    match plan.api:
        case "chat":
            body |= {"messages": turns, "n": plan.choices}
        case "completions":
            body |= {"prompt": plan.question, "n": plan.choices, "max_tokens": 4096}
        case "messages":
            body |= {"messages": turns, "max_tokens": 4096}
        case "responses":
            body |= {"input": plan.question, "store": False}
    content = json.dumps(body).encode()
    head = (
        f"POST {_PATHS[plan.api]} HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def play(plan: Plan, port: int) -> Seen:
    """The whole of one stream."""
    seen = Seen(plan, began=time.monotonic())
    with socket.socket() as line:
        line.setblocking(False)
        if plan.client == "slow":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        try:
            await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
        except OSError:
            seen.how = "refused"
            return seen
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await _talk(plan, seen, line)
        except TimeoutError:
            seen.how = "hung"
        if seen.how == "left" and plan.gone_by_reset:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    seen.ended = time.monotonic()
    return seen


async def _talk(plan: Plan, seen: Seen, line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    answer = Answer(seen)
    try:
        await loop.sock_sendall(line, request(plan))
        if plan.client == "leaves-early":
            await asyncio.sleep(plan.leaves_after * 0.05)
            seen.how = "left"
            return
        if plan.client == "half-closes":
            line.shutdown(socket.SHUT_WR)
        while not answer.complete:
            data = await loop.sock_recv(line, 512 if plan.client == "slow" else 65536)
            if not data:
                return
            answer.feed(data)
            if plan.client == "slow":
                await asyncio.sleep(0.01)
            if _leaves(plan, seen, answer):
                seen.how = "left"
                return
        seen.how = "whole"
    except OSError:
        return
    except _Malformed:
        seen.how = "malformed"


def _leaves(plan: Plan, seen: Seen, answer: Answer) -> bool:
    match plan.client:
        case "leaves-midway":
            return len(seen.body) > plan.leaves_after * 1500
        case "leaves-late":
            # Between the last event and the end of the body, where that can be seen.
            last = (b"[DONE]\n\n", b"message_stop", b"response.completed")
            return any(word in seen.body for word in last) and not answer.complete
    return False
