"""The aligner's server that misbehaves as the plan of each stream says, and that can be killed.

It is asked as any server with `/v1/completions`: token ids in, token ids out. Its model is a rule:
the marks of `plan` are taken away.

    python -m bench.faulty.aligner --port 9001 --path FOLDER    # the folder with the tokenizer
"""

import argparse
import asyncio
import json
import socket
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.faulty.plan import Plan, aligned, asked
from stream_aligner_proxy.core.prompts import ANSWER, COMMITTED, REVISION, SENTENCE

_END_TOKEN = "<|eos|>"
_WINDOW = 1024
_STALL_SECONDS = 30.0
_PIECE = 6  # tokens
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


class FaultyAligner:
    """`reviews`: of each stream so far; a restart forgets them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._words = tokenizer
        self._reviews: Counter[tuple[int, int]] = Counter()

    def id_of(self, name: str) -> int:
        number: int = self._words.token_to_id(name)
        return number

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
            body = await reader.readexactly(length)
            if body:
                gone = asyncio.create_task(reader.read(1))
                answer = asyncio.create_task(self._answer(json.loads(body), writer))
                await asyncio.wait((gone, answer), return_when=asyncio.FIRST_COMPLETED)
                for task in (gone, answer):
                    task.cancel()
                await asyncio.gather(gone, answer, return_exceptions=True)
            else:
                model = {"id": "marks", "object": "model", "max_model_len": _WINDOW}
                _json(writer, 200, {"object": "list", "data": [model]})
            await writer.drain()
        writer.close()

    async def _answer(self, asked_for: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        prompt: list[int] = asked_for["prompt"]
        if bias := asked_for.get("logit_bias"):
            token = int(next(iter(bias)))
            writer.write(_HEAD + self._piece([token], "length"))
            return
        text = self._words.decode(prompt, skip_special_tokens=False)
        # The committed text may hold anything: the question comes before it.
        found = asked(text.partition(COMMITTED)[0])
        mark = SENTENCE if self.id_of(SENTENCE) in prompt else ANSWER
        sentence = text.rpartition(mark)[2].rpartition(REVISION)[0]
        ids = self._words.encode(aligned(sentence), add_special_tokens=False).ids
        ids.append(self.id_of(_END_TOKEN))
        if found is None:  # it is being got to know
            writer.write(_HEAD + self._piece(ids[:1], "length"))
            return
        await self._write(found[0], ids, writer)

    async def _write(self, made: Plan, ids: list[int], writer: asyncio.StreamWriter) -> None:
        key = made.seed, made.number
        review, self._reviews[key] = self._reviews[key], self._reviews[key] + 1
        fault = ""
        if review == made.at_review or (made.aligner_always and review > made.at_review):
            fault = made.aligner_fault
        match fault:
            case "500" | "503" | "400":
                _json(writer, int(fault), {"error": {"message": "no", "code": int(fault)}})
                return
            case "reset-head":
                _reset(writer)
                return
            case "stall":
                await asyncio.sleep(_STALL_SECONDS)
            case "slow":
                await asyncio.sleep(0.3)
            case "unknown-ids":
                ids = [*ids[:3], 1_000_000_000, *ids[3:]]
            case "control-token":
                ids = [*ids[:3], self.id_of(SENTENCE), *ids[3:]]
            case "unfinished":
                ids = ids[: len(ids) // 2]
            case "no-ids":
                writer.write(_HEAD + b'data: {"choices":[{"index":0,"text":"zz"}]}\n\n')
                return
        writer.write(_HEAD)
        for at in range(0, len(ids), _PIECE):
            if at and fault in ("bad-json", "no-object", "cut", "error-frame"):
                await writer.drain()
                _break(fault, writer)
                return
            last = at + _PIECE >= len(ids)
            finish = ("length" if fault == "unfinished" else "stop") if last else None
            writer.write(self._piece(ids[at : at + _PIECE], finish))
            await asyncio.sleep(0)
        writer.write(b"data: [DONE]\n\n")

    def _piece(self, ids: list[int], finish: str | None) -> bytes:
        known = [token for token in ids if token < self._words.get_vocab_size()]
        choice = {"index": 0, "text": self._words.decode(known), "finish_reason": finish}
        frame = {"model": "marks", "choices": [{**choice, "token_ids": ids}]}
        return b"data: " + json.dumps(frame).encode() + b"\n\n"


def _break(fault: str, writer: asyncio.StreamWriter) -> None:
    match fault:
        case "bad-json":
            writer.write(b'data: {"choices": [{"te\n\n')
        case "no-object":
            writer.write(b"data: [1]\n\n")
        case "error-frame":
            writer.write(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
        case _:
            _reset(writer)


def _json(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content)


def _reset(writer: asyncio.StreamWriter) -> None:
    told: socket.socket = writer.get_extra_info("socket")
    told.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(port: int, path: Path) -> None:
    one = FaultyAligner(Tokenizer.from_file(str(path / "tokenizer.json")))
    server = await asyncio.start_server(one.connected, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.path))


if __name__ == "__main__":
    main()
