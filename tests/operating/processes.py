"""A real `stream-aligner serve` in front of the scripted upstream, with streams that are held."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import yaml

from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.api.proxy import parse_frames, text_of

BOUND = 30.0  # seconds; what is waited for takes a moment or never comes
TEXT = "One is fine. Two is bad. Three is bad."
HELD = Script(
    # What is asked with "hold" stops in the middle until the upstream is released.
    (Rule(TEXT, when="hold", fault=Fault(hold=4)), Rule(TEXT)),
)


def write_config(folder: Path, upstream: str, replace: str = "good", **server: object) -> Path:
    """Rules that say `replace` for "bad"; what is in `server` is laid over the section."""
    (folder / "rules.yaml").write_text(yaml.safe_dump([{"find": "bad", "replace": replace}]))
    main = {"name": "main", "base_url": f"{upstream}/v1", "dialect": "vllm", "probe": False}
    file = folder / "proxy.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "upstreams": [main],
                "aligner": {"backend": "rules", "path": "rules.yaml"},
                "server": {"page": False, "port": 0, **server},
            }
        )
    )
    return file


def aligned(word: str = "good") -> str:
    return TEXT.replace("bad", word)


class Serving:
    """The running command. `lines` are what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.address = ""
        self._more = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            self._more.set()
        self._more.set()

    async def logged(self, words: str, times: int = 1) -> str:
        """The line with these words, when it has come so many times."""
        async with asyncio.timeout(BOUND):
            while True:
                found = [line for line in self.lines if words in line]
                if len(found) >= times:
                    return found[-1]
                assert not self._reader.done(), "".join(self.lines)
                self._more.clear()
                await self._more.wait()

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(BOUND):
            return await self.process.wait()

    async def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        await self._reader


@asynccontextmanager
async def serving(
    config: Path, *, ready: str = "listening on", times: int = 1
) -> AsyncIterator[Serving]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_aligner_proxy", "serve", "--config", str(config)),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    running = Serving(process)
    try:
        line = await running.logged(ready, times)
        found = re.search(r"https?://[^\s\"]+", line)
        running.address = found[0] if found else ""
        yield running
    finally:
        await running.close()


class OpenStream:
    """A stream that was begun: `first` text has come, `rest` waits for its end."""

    def __init__(self, response: httpx.Response, first: str, parts: AsyncIterator[str]) -> None:
        self._response = response
        self._parts = parts
        self.said = first

    async def rest(self) -> str:
        """All of its text."""
        async with asyncio.timeout(BOUND):
            async for part in self._parts:
                self.said += part
        frames = parse_frames(self.said)
        errors = [frame["error"] for frame in frames[:-1] if "error" in frame]
        assert not errors, errors
        assert frames[-1] == "[DONE]"
        return text_of(frames)


def body(content: str = "go", stream: bool = True) -> dict[str, object]:
    return {
        "model": "scripted",
        "messages": [{"role": "user", "content": content}],
        "stream": stream,
    }


@asynccontextmanager
async def open_stream(
    client: httpx.AsyncClient, content: str = "hold"
) -> AsyncIterator[OpenStream]:
    """Held in the middle by the upstream, after its first sentence."""
    async with client.stream("POST", "/v1/chat/completions", json=body(content)) as response:
        assert response.status_code == 200, await response.aread()
        parts = response.aiter_text()
        said = ""
        while "One is" not in said:
            said += await anext(parts)
        yield OpenStream(response, said, parts)


async def ask(client: httpx.AsyncClient, content: str = "go") -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body(content, stream=False))


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    said: str = json.loads(response.content)["choices"][0]["message"]["content"]
    return said


@asynccontextmanager
async def upstream(script: Script = HELD) -> AsyncIterator[tuple[ScriptedUpstream, str]]:
    from tests.servers import serve

    scripted = ScriptedUpstream(script)
    async with serve(scripted) as address:
        yield scripted, address
