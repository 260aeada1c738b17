"""What a gateway written in an afternoon looks like: FastAPI, httpx, each chunk parsed and written
again. `bench.gateway` measures ours against it.

    python -m bench.relays --port 9002 --upstream http://127.0.0.1:9001/v1
"""

import argparse
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


def app(upstream: str) -> FastAPI:
    """The relay in front of `upstream`, whose URL includes `/v1`."""
    client = httpx.AsyncClient(
        timeout=60, trust_env=False, limits=httpx.Limits(max_connections=1000)
    )
    relay = FastAPI()

    async def chat(request: Request) -> Response:
        body = json.loads(await request.body())

        async def chunks() -> AsyncIterator[bytes]:
            async with client.stream("POST", f"{upstream}/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        yield b"data: [DONE]\n\n"
                    elif line.startswith("data: "):
                        yield b"data: " + json.dumps(json.loads(line[6:])).encode() + b"\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "mock", "object": "model"}]})

    routes: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
        ("POST", "/v1/chat/completions", chat),
        ("GET", "/v1/models", models),
    ]
    for method, path, endpoint in routes:
        relay.add_api_route(path, endpoint, methods=[method], response_model=None)
    return relay


def main() -> None:
    parser = argparse.ArgumentParser(description="A bare FastAPI and httpx relay.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    uvicorn.run(
        app(options.upstream), port=options.port, log_level="error", access_log=False, ws="none"
    )


if __name__ == "__main__":
    main()
