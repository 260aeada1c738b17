"""An upstream that writes paced text for a thousand streams and says in the text itself when.

Each sentence is a paragraph of its own and ends with a stamp, `t` and microseconds of the monotonic
clock, which all processes of a machine share: so a client knows of each sentence how long ago the
upstream wrote its last byte. It continues a partial message where its text ends.

    python -m bench.timed --port 9001
"""

import argparse
import asyncio
import json
import random
import re
import time
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

_ORDER = re.compile(r"sentences=(\d+) rate=(\d+(?:\.\d+)?) seed=(\d+)")
_STAMP = re.compile(r"t\d+\.")
STAMP = re.compile(rb"t(\d{6,})\.")
_NOUNS = "river stone lamp garden window letter paper morning silver engine market harbour simple"
_WORDS = _NOUNS.split()
_WORDS_A_SENTENCE = 9
WRONG, RIGHT = "colour", "color"  # what the rules of the aligner replace
_WRONG_SHARE = 0.1
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
_FRAME = '{"id":"x","object":"chat.completion.chunk","created":1,"model":"timed","choices":[%s]}'
_CHOICE = '{"index":0,"delta":{"content":%s},"finish_reason":null}'
_LAST = '{"index":0,"delta":{},"finish_reason":"stop"}'


def order(sentences: int, rate: float, seed: int) -> str:
    """The question that asks for such a reply, of `rate` tokens a second."""
    return f"sentences={sentences} rate={rate:g} seed={seed}"


@lru_cache(maxsize=4096)
def words_of(sentences: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The words of each sentence, without the stamp."""
    dice = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = dice.choices(_WORDS, k=_WORDS_A_SENTENCE)
        if dice.random() < _WRONG_SHARE:
            words[4] = WRONG
        words[0] = words[0].capitalize()
        made.append(tuple(words))
    return tuple(made)


def expected(sentences: int, seed: int, *, aligned: bool) -> str:
    """The whole reply, stamps without their numbers."""
    text = "".join(" ".join(words) + " t.\n\n" for words in words_of(sentences, seed))
    return text.replace(WRONG, RIGHT) if aligned else text


def without_stamps(text: str) -> str:
    return _STAMP.sub("t.", text)


def _chunk(frame: str) -> bytes:
    data = b"data: " + frame.encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


class Server(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._left: list[str] = []
        self._every = self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

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
            answer = b'{"object":"list","data":[{"id":"timed","object":"model"}]}'
            length = b"content-length: %d\r\n\r\n" % len(answer)
            self._transport.write(_HEAD + b"application/json\r\n" + length + answer)
            return
        messages: list[dict[str, Any]] = json.loads(body)["messages"]
        asked = _ORDER.fullmatch(messages[0]["content"])
        assert asked is not None, messages
        prefix = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        done = prefix.count(".")
        self._left = _tokens(words_of(int(asked[1]), int(asked[3]))[done:], begun=bool(done))
        self._left.reverse()
        self._every = 1 / float(asked[2])
        self._due = self._loop.time()
        self._transport.write(_HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        self._pace()

    def _pace(self) -> None:
        # Without drift: a late event does not make the next one late.
        self._due += self._every
        self._timer = self._loop.call_at(self._due, self._step)

    def _step(self) -> None:
        if not self._left:
            self._end()
            return
        token = self._left.pop()
        if token == " t":
            token = f"{token}{time.monotonic_ns() // 1000}.\n\n"
        self._transport.write(_chunk(_FRAME % (_CHOICE % json.dumps(token))))
        if self._left:
            self._pace()
        else:
            self._end()

    def _end(self) -> None:
        self._transport.write(_chunk(_FRAME % _LAST) + _chunk("[DONE]") + b"0\r\n\r\n")


def _tokens(sentences: tuple[tuple[str, ...], ...], *, begun: bool) -> list[str]:
    """`begun`: the text before them has lost the white space at its end."""
    tokens: list[str] = []
    for words in sentences:
        tokens.append(words[0])
        tokens += [f" {word}" for word in words[1:]]
        tokens.append(" t")
    if begun and tokens:
        tokens[0] = "\n\n" + tokens[0]
    elif begun:
        tokens.append("\n\n")
    return tokens


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=import_module("uvloop").new_event_loop) as runner:
        runner.run(serve(options.port))


if __name__ == "__main__":
    main()
