"""A mock upstream that costs next to nothing: one SSE event per token, paced or at full speed.

What it writes is a function of the question, so that whoever asked can check every byte:
`tokens=200 rate=20 seed=3` gives 200 tokens of made-up English, 20 a second (rate 0: as fast as the
reader takes them). With `--replies FILE` (JSON: question to list of tokens) a known question gets
its recorded tokens instead, at `--rate`. A raw protocol, no framework: it must not be what a
benchmark measures.

    python -m bench.mock --port 9001
"""

import argparse
import asyncio
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Usage = Literal["none", "last", "continuous"]
_ORDER = re.compile(r"tokens=(\d+) rate=(\d+(?:\.\d+)?) seed=(\d+)")
_HEAD = {
    "id": "chatcmpl-mock",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "mock",
}
_PROSE = (
    "river stone lamp garden window letter paper morning silver engine market harbour simple "
    "quiet bright narrow early open across between under behind while because although walks "
    "carries finds keeps writes reads turns opens the a one some every café naïve 3.5 1,200 e.g."
)
_WORDS = _PROSE.split()
_ENDS = (".", ".", ".", "!", "?", ".\n\n")
_PROMPT_TOKENS = 12
# Events between two turns of the event loop, at full speed.
_BURST = 16
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: "
_STREAM_HEAD = _OK + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def order(tokens: int, rate: float, seed: int) -> str:
    """The question that asks for such a reply."""
    return f"tokens={tokens} rate={rate:g} seed={seed}"


@lru_cache(maxsize=64)
def made_up(tokens: int, seed: int) -> tuple[str, ...]:
    """Tokens of made-up prose: sentences of four to twenty words, a paragraph now and then."""
    rng = random.Random(seed)
    made: list[str] = []
    left, capital = 0, True
    while len(made) < tokens:
        if left == 0 and made:
            made.append(rng.choice(_ENDS))
            left, capital = rng.randint(4, 20), True
            continue
        left = left or rng.randint(4, 20)
        word = rng.choice(_WORDS)
        space = " " if made and not made[-1].endswith("\n") else ""
        made.append(space + (word.capitalize() if capital else word))
        left, capital = left - 1, False
    return tuple(made)


def _event(choices: list[Any], usage: Mapping[str, int] | None = None) -> bytes:
    frame = {**_HEAD, "choices": choices} | ({"usage": usage} if usage else {})
    data = json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode()
    return b"data: " + data + b"\n\n"


def _choice(delta: Mapping[str, str], finish_reason: str | None = None) -> list[Any]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


def _usage(count: int) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": count,
        "total_tokens": _PROMPT_TOKENS + count,
    }


def events(tokens: Sequence[str], *, usage: Usage) -> Iterator[bytes]:
    """The events of one reply: role, one per token, finish reason, usage, end."""
    every = usage == "continuous"
    yield _event(_choice({"role": "assistant", "content": ""}), _usage(0) if every else None)
    for count, token in enumerate(tokens, 1):
        yield _event(_choice({"content": token}), _usage(count) if every else None)
    total = _usage(len(tokens))
    yield _event(_choice({}, "stop"), total if every else None)
    if usage != "none":
        yield _event([], total)
    yield b"data: [DONE]\n\n"


@lru_cache(maxsize=256)
def _framed(tokens: tuple[str, ...], usage: Usage) -> tuple[bytes, ...]:
    """The same, each event in an HTTP chunk of its own, and the end of the body."""
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(tokens, usage=usage)]
    return (*chunks, b"0\r\n\r\n")


class Server(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, replies: Mapping[str, Sequence[str]], rate: float) -> None:
        self._replies = replies
        self._rate = rate
        self._buffer = b""
        self._paused = False
        self._chunks: tuple[bytes, ...] = ()
        self._next = 0
        self._every = 0.0
        self._due = 0.0
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._chunks and not self._every:
            self._flood()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if found and len(rest) >= size:
            self._buffer = rest[size:]
            self._answer(head, rest[:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            listed = {"object": "list", "data": [{"id": "mock", "object": "model"}]}
            answer = json.dumps(listed).encode()
            length = b"content-length: %d\r\n\r\n" % len(answer)
            self._transport.write(_OK + b"application/json\r\n" + length + answer)
            return
        asked = json.loads(body)
        said = asked["messages"][-1]["content"]
        # Some gateways send the text as a list of parts.
        question = said if isinstance(said, str) else said[0]["text"]
        options = asked.get("stream_options") or {}
        usage: Usage = "last" if options.get("include_usage") else "none"
        if options.get("continuous_usage_stats"):  # vLLM's, which ours asks for
            usage = "continuous"
        tokens, rate = self._reply(question)
        self._chunks, self._next = _framed(tokens, usage), 2
        self._transport.write(_STREAM_HEAD + self._chunks[0] + self._chunks[1])
        self._every = 1 / rate if rate else 0.0
        self._due = self._loop.time()
        if rate:
            self._pace()
        else:
            self._flood()

    def _reply(self, question: str) -> tuple[tuple[str, ...], float]:
        if question in self._replies:
            return tuple(self._replies[question]), self._rate
        ordered = _ORDER.fullmatch(question)
        assert ordered is not None, question
        return made_up(int(ordered[1]), int(ordered[3])), float(ordered[2])

    def _pace(self) -> None:
        # Without drift: a late event does not make the next one late. What ends the reply comes
        # with its last token.
        self._due += self._every
        self._timer = self._loop.call_at(self._due, self._step)

    def _step(self) -> None:
        left = len(self._chunks) - self._next
        if left <= 5:
            self._transport.write(b"".join(self._chunks[self._next :]))
            self._chunks = ()
            return
        self._transport.write(self._chunks[self._next])
        self._next += 1
        self._pace()

    def _flood(self) -> None:
        for _ in range(_BURST):
            if not self._chunks or self._paused or self._transport.is_closing():
                return
            self._transport.write(self._chunks[self._next])
            self._next += 1
            if self._next == len(self._chunks):
                self._chunks = ()
                return
        self._timer = self._loop.call_soon(self._flood)


async def serve(port: int, replies: Mapping[str, Sequence[str]], rate: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(replies, rate), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replies", type=Path, help="JSON: question to list of tokens")
    parser.add_argument("--rate", type=float, default=0.0, help="of recorded replies, tokens/s")
    options = parser.parse_args()
    replies = json.loads(options.replies.read_text()) if options.replies else {}
    asyncio.run(serve(options.port, replies, options.rate))


if __name__ == "__main__":
    main()
