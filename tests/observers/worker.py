"""One worker of several, for tests: serves a rules aligner on a listening socket it inherits.

`python -m tests.observers.worker FD UPSTREAM`; a line on stdout when it serves.
"""

import asyncio
import socket
import sys
from pathlib import Path

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.settings import build
from tests.observers.traffic import QueuedAligner
from tests.servers import Server


async def main(listener: socket.socket, upstream: str) -> None:
    settings = build(
        {
            "upstreams": [
                {"name": "main", "base_url": f"{upstream}/v1", "dialect": "vllm", "probe": False}
            ],
            "aligner": {"backend": "rules", "path": str(Path(__file__))},
        }
    )
    server = Server(create_app(settings, aligner=QueuedAligner()))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.to_thread(server.ready.wait, 30)
    print("serves", flush=True)  # noqa: T201
    await serving


if __name__ == "__main__":
    asyncio.run(main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))
