"""A whole proxy over real HTTP, in front of the scripted upstream."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from fastapi import FastAPI

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.core.watching import Observer
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import Settings, build
from tests.fakes import FunctionAligner
from tests.servers import serve

REPLY = "Anna has 3 apples. She eats one. So 2 are left."
QUESTION = [{"role": "user", "content": "How many?"}]
# For an upstream that the test knows to be silent; a busy machine can be so for half a second, too.
SHORT = {"connect": 1, "first_byte": 0.5, "between_chunks": 0.5, "total": 10}
PATIENT = {"connect": 20, "first_byte": 20, "between_chunks": 20, "total": 60}


def replacing(**words: str) -> FunctionAligner:
    """An aligner that replaces the sentences that hold a word."""

    def judge(review: Review) -> Verdict:
        for word, text in words.items():
            if word in review.sentence:
                return Verdict(text)
        return Verdict()

    return FunctionAligner(judge)


def settings(address: str, **sections: Any) -> Settings:
    upstream = {"name": "main", "base_url": f"{address}/v1", "dialect": "vllm", "probe": False}
    upstream["timeouts"] = PATIENT
    upstream |= sections.pop("upstream", {})
    return build(
        {
            "upstreams": sections.pop("upstreams", [upstream]),
            "aligner": {"backend": "rules", "path": str(Path(__file__))}
            | sections.pop("aligner_settings", {}),
            "alignment": {"allow_override": True} | sections.pop("alignment", {}),
            **sections,
        }
    )


@dataclass
class Proxy:
    """A client of the running proxy, and the upstream behind it."""

    client: httpx.AsyncClient
    upstream: ScriptedUpstream
    app: FastAPI
    address: str

    def body(self, stream: bool = False, **fields: Any) -> dict[str, Any]:
        return {"model": "scripted", "messages": QUESTION, "stream": stream} | fields

    async def post(self, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/v1/chat/completions", json=self.body(**fields), headers=headers
        )

    async def frames(self, **fields: Any) -> list[Any]:
        """The data of all events of a stream, `[DONE]` as that text."""
        response = await self.post(stream=True, **fields)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return parse_frames(response.text)


def parse_frames(text: str) -> list[Any]:
    """Strict: every event is one `data:` line and a blank line."""
    assert text.endswith("\n\n")
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert event.startswith("data: "), event
        assert "\n" not in event
        data = event.removeprefix("data: ")
        events.append(data if data == "[DONE]" else orjson.loads(data))
    return events


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, whose shape is checked."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return body["error"]


def text_of(frames: list[Any]) -> str:
    return "".join(
        frame["choices"][0]["delta"].get("content") or ""
        for frame in frames
        if frame != "[DONE]" and frame.get("choices")
    )


def extensions(frames: list[Any], key: str) -> list[Any]:
    """The values of `key` in the frames' extension objects."""
    found = [f.get("stream_aligner") or {} for f in frames if f != "[DONE]"]
    return [extension[key] for extension in found if key in extension]


@asynccontextmanager
async def proxy(
    *rules: Rule,
    aligner: Aligner | None = None,
    observers: Sequence[Observer] = (),
    script: Mapping[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[Proxy]:
    upstream = ScriptedUpstream(Script(rules or (Rule(REPLY),), **(script or {})))
    async with serve(upstream) as behind:
        app = create_app(
            settings(behind, **sections),
            aligner=FunctionAligner() if aligner is None else aligner,
            observers=observers,
        )
        async with serve(app) as address, httpx.AsyncClient(base_url=address) as client:
            yield Proxy(client, upstream, app, address)
