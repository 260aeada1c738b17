"""The paced upstream and the proxy with the paced aligner, as servers for `bench.stream --real`.

`python -m bench.paced_servers upstream --port N` and `… proxy --port N --upstream URL`. One pair
serves all cells: what a reply is and how fast it comes stands in the question, as JSON. The
upstream's `GET /v1/written` tells how many tokens it wrote so far.
"""

import argparse
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from bench.paced import REQUEST, PacedAligner, PacedUpstream, text_of
from stream_aligner_proxy import serving
from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo import serving as foreground
from stream_aligner_proxy.operating.shared import Shared
from stream_aligner_proxy.settings import build


class AskedAligner(PacedAligner):
    """As fast as the question says."""

    def __init__(self) -> None:
        super().__init__(0)

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        asked = json.loads(review.conversation[-1].text)
        return await PacedAligner(asked["review_ms"] / 1000).review(review, progress)


def upstream_app() -> Starlette:
    written = 0

    async def chat(request: Request) -> StreamingResponse:
        messages = (await request.json())["messages"]
        asked = json.loads(messages[0]["content"])
        prefix = messages[-1]["content"] if len(messages) > 1 else ""
        text = text_of(asked["sentences"], asked["corrected"], asked["seed"])
        upstream = PacedUpstream(text, asked["tokens_per_s"], asked["restart_ms"] / 1000)
        return StreamingResponse(events(upstream, prefix), media_type="text/event-stream")

    async def events(upstream: PacedUpstream, prefix: str) -> AsyncIterator[bytes]:
        nonlocal written
        try:
            async with upstream.open(REQUEST, prefix=prefix) as chunks:
                async for chunk in chunks:
                    choice: dict[str, Any] = {"index": 0, "delta": {"content": chunk.text}}
                    choice["finish_reason"] = chunk.finish_reason
                    frame: dict[str, Any] = {"object": "chat.completion.chunk", "model": "paced"}
                    frame["choices"] = [choice]
                    yield b"data: " + json.dumps(frame).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            written += upstream.written

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "paced", "object": "model"}]})

    async def count(request: Request) -> JSONResponse:
        return JSONResponse(written)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/written", count),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("upstream", "proxy"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", help="its address, for the proxy")
    options = parser.parse_args()
    if options.which == "upstream":
        foreground.run(upstream_app(), "127.0.0.1", options.port, "paced upstream")
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as rules:
        # Not used: the aligner is given below.
        aligner = {"backend": "rules", "path": rules.name}
        upstream = {"name": "paced", "base_url": options.upstream, "dialect": "vllm"}
        alignment = {"max_continuations": 1_000_000}
        settings = build({"upstreams": [upstream], "aligner": aligner, "alignment": alignment})
        listener = socket.create_server(("127.0.0.1", options.port))
        shared = Shared(settings.server)
        app = create_app(settings, aligner=AskedAligner(), shared=shared)
        serving.run(app, listener, shared)


if __name__ == "__main__":
    main()
