"""A deterministic upstream that follows a script: for demonstrations, load tests and fault drills.

Run it with `python -m stream_aligner_proxy.demo.scripted --script FILE.yaml --port N`, or put
`ScriptedUpstream(script)` under any ASGI server. Serves `POST /v1/chat/completions`,
`GET /v1/models`, `GET /health`, and `GET /_script/requests`: what it was asked, and when each
client left. Plain ASGI without a framework, because faults need the connection itself.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.demo import serving
from stream_aligner_proxy.demo.script import Script, load
from stream_aligner_proxy.demo.scripted_answer import (
    Answer,
    ClientLeft,
    Receive,
    Recorded,
    Send,
    error_body,
    respond,
)

Scope = MutableMapping[str, Any]


class ScriptedUpstream:
    """The ASGI application. `requests` and the counts may be read while it runs."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Recorded] = []
        self._changed: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._held: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def opened(self) -> int:
        return len(self.requests)

    @property
    def closed(self) -> int:
        return sum(request.closed_at is not None for request in self.requests)

    @property
    def running(self) -> int:
        return self.opened - self.closed

    async def until(
        self, condition: Callable[["ScriptedUpstream"], bool], seconds: float = 5.0
    ) -> None:
        """Wait until `condition` holds, checked at each change. Raises `TimeoutError`."""
        changed = asyncio.Event()
        entry = (asyncio.get_running_loop(), changed)
        self._changed.append(entry)
        try:
            async with asyncio.timeout(seconds):
                while not condition(self):
                    await changed.wait()
                    changed.clear()
        finally:
            self._changed.remove(entry)

    def release(self) -> None:
        """Let go of every answer that a `hold` keeps."""
        held, self._held = self._held, []
        for loop, event in held:
            loop.call_soon_threadsafe(event.set)

    def _change(self) -> None:
        """Wake those that wait in `until`."""
        for loop, event in tuple(self._changed):
            loop.call_soon_threadsafe(event.set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        match scope["method"], scope["path"]:
            case "POST", "/v1/chat/completions":
                await self._chat(scope, receive, send)
            case "GET", "/v1/models":
                model = {"id": self.script.model, "object": "model", "owned_by": "scripted"}
                await respond(send, 200, {"object": "list", "data": [model]})
            case "GET", "/_script/requests":
                await respond(send, 200, [asdict(request) for request in self.requests])
            case "GET", "/health":
                await respond(send, 200, {})
            case _:
                await respond(send, 404, error_body(f"no such path: {scope['path']}"))

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        request = Recorded(body, headers, self.opened + 1, time.monotonic())
        self.requests.append(request)
        self._change()
        gone = asyncio.create_task(receive())
        try:
            answer = Answer(self.script, request, send, gone, hold=self._hold, changed=self._change)
            await answer.run()
        except ClientLeft:
            request.left_at = time.monotonic()
        finally:
            gone.cancel()
            request.closed_at = time.monotonic()
            self._change()

    def _hold(self) -> asyncio.Event:
        """An event that the next `release` sets."""
        event = asyncio.Event()
        self._held.append((asyncio.get_running_loop(), event))
        return event


def main() -> None:
    """Serve one script until interrupted."""
    parser = argparse.ArgumentParser(description="A deterministic OpenAI-compatible upstream.")
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9002)
    arguments = parser.parse_args()
    try:
        script = load(arguments.script)
    except ConfigError as error:
        sys.exit(str(error))
    serving.run(ScriptedUpstream(script), arguments.host, arguments.port, script.model)


if __name__ == "__main__":
    main()
