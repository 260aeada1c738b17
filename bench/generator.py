"""A cheap load generator in a process of its own: streams replies and checks each byte for byte.

One job a line on stdin (the JSON of `Job`), one line of JSON with an `Outcome` on stdout. While a
reply comes in its pieces are only kept; it is taken apart and checked after the clock has stopped,
so that the check is not measured. A raw protocol, so that it keeps up with any gateway.
"""

import asyncio
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.mock import events, made_up, order

# Sent with every request; LiteLLM wants one, and not a weak one.
KEY = "sk-bench-0123456789abcdef"
# The first text: a content that is not empty, in the JSON of any of the targets.
_TEXT = re.compile(rb'"content" ?: ?"[^"]')
_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """What to ask, and how: `streams` connections at once, each asking one reply after the other,
    `requests` times or (where that is 0) until `seconds` have passed.

    `questions` are asked in turn; without them the mock's own, for `tokens` tokens at `rate` a
    second, whose answers are known and checked."""

    port: int
    tokens: int = 0
    rate: float = 0.0
    streams: int = 1
    requests: int = 1
    seconds: float = 0.0
    seed: int = 1
    exact: bool = False  # the bytes must be the upstream's own, not only the text
    questions: list[str] = field(default_factory=list)
    model: str = "mock"
    stagger: float = 0.0  # seconds over which the streams begin
    patience: float = 30.0  # seconds that a reply may take beyond its own pace


@dataclass
class Outcome:
    """Times are seconds. `chunks`: events with text that the upstream wrote for these replies;
    `tokens`: what was delivered, as the usage tells it; `stalls`: of each reply the longest time
    between two pieces of text."""

    seconds: float
    chunks: int
    tokens: int
    first_text: list[float]
    stalls: list[float]
    failures: list[str]


@dataclass
class Reply:
    """One reply: what came, and when."""

    question: str
    seed: int
    begun: float
    first_text: float | None = None
    pieces: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str = ""
    tokens: int = 0

    @property
    def stall(self) -> float:
        """The longest time between two pieces of text."""
        texts = [
            at
            for at, piece in zip(self.times, self.pieces, strict=True)
            if _TEXT.search(piece) is not None
        ]
        return max((after - before for before, after in pairwise(texts)), default=0.0)


class Client(asyncio.Protocol):
    """One connection, asking one thing at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None
        self._tail = b""
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._reply is not None:
            self._reply.error = "the connection was closed before the end of the reply"
            self._finish()

    def leave(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def ask(self, request: bytes, reply: Reply) -> None:
        """Send, and return when the reply is over."""
        assert self.transport is not None
        self._reply, self._tail = reply, b""
        self._done = asyncio.get_running_loop().create_future()
        reply.begun = time.perf_counter()
        self.transport.write(request)
        try:
            await self._done
        finally:
            self._reply = None

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None:
            return
        reply.pieces.append(data)
        now = time.perf_counter()
        reply.times.append(now)
        if reply.first_text is None and _TEXT.search(self._tail + data):
            reply.first_text = now - reply.begun
        self._tail = (self._tail + data)[-64:] if len(data) < 64 else data[-64:]
        if self._tail.endswith(_END) or (len(reply.pieces) < 3 and self._refused(reply)):
            self._finish()

    @staticmethod
    def _refused(reply: Reply) -> bool:
        """Whether this is a whole answer of a given length: only errors have one here."""
        head, _, body = b"".join(reply.pieces).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        return length is not None and len(body) >= int(length[1])

    def _finish(self) -> None:
        self._reply = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def request_bytes(job: Job, question: str) -> bytes:
    body = {
        "model": job.model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        f"host: 127.0.0.1:{job.port}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        f"accept: text/event-stream\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _stream(job: Job, number: int, until: float, replies: list[Reply]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(number / job.streams * job.stagger)
    client = Client()
    for turn in range(job.requests or sys.maxsize):
        if not job.requests and turn and time.perf_counter() >= until:
            break
        count = number + turn * job.streams
        seed = job.seed + count % 16
        if job.questions:
            question = job.questions[count % len(job.questions)]
        else:
            question = order(job.tokens, job.rate, seed)
        reply = Reply(question, seed, time.perf_counter())
        replies.append(reply)
        try:
            if client.transport is None:
                client = Client()
                await loop.create_connection(lambda c=client: c, "127.0.0.1", job.port)
            pace = job.tokens / job.rate if job.rate else 0
            async with asyncio.timeout(job.patience + pace):
                await client.ask(request_bytes(job, question), reply)
        except TimeoutError:
            reply.error = "no end in time"
        except OSError as error:
            reply.error = type(error).__name__
        if reply.error:
            client.leave()
            client = Client()
    client.leave()


def unchunked(body: bytes) -> bytes:
    """An HTTP body without the framing of its chunks."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def payloads(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream."""
    for line in body.split(b"\n"):
        if line.startswith(b"data: ") and line.rstrip() != b"data: [DONE]":
            yield json.loads(line[6:])


def fault_of(job: Job, reply: Reply) -> str:
    """What is wrong with a reply; empty where nothing is."""
    if reply.error:
        return reply.error
    head, _, rest = b"".join(reply.pieces).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if status != b"200":
        return f"status {status.decode()}: {rest[:200].decode(errors='replace')}"
    tokens = made_up(job.tokens, reply.seed)
    try:
        body = unchunked(rest)
        if job.exact:
            return "" if body == b"".join(events(tokens, usage="last")) else "other bytes"
        frames = list(payloads(body))
    except ValueError as error:
        return f"not an event stream: {error}"
    for frame in frames:
        if frame.get("error"):
            return f"error frame: {frame['error']}"[:200]
        reply.tokens = (frame.get("usage") or {}).get("completion_tokens", reply.tokens)
    choices = [choice for frame in frames for choice in frame["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    if not text if job.questions else text != "".join(tokens):
        return "other text"
    if not any(choice.get("finish_reason") == "stop" for choice in choices):
        return "no finish reason"
    return "" if body.endswith(b"data: [DONE]\n\n") else "no end marker"


async def run(job: Job) -> Outcome:
    replies: list[Reply] = []
    begun = time.perf_counter()
    until = begun + job.seconds
    async with asyncio.TaskGroup() as group:
        for number in range(job.streams):
            group.create_task(_stream(job, number, until, replies))
    seconds = time.perf_counter() - begun
    faults = [fault_of(job, reply) for reply in replies]
    firsts = [reply.first_text for reply in replies if reply.first_text is not None]
    return Outcome(
        seconds,
        chunks=len(replies) * job.tokens,
        tokens=sum(reply.tokens for reply in replies),
        first_text=firsts,
        stalls=[reply.stall for reply in replies],
        failures=[fault for fault in faults if fault],
    )


def main() -> None:
    for line in sys.stdin:
        outcome = asyncio.run(run(Job(**json.loads(line))))
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
