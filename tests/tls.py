"""A real server with TLS and HTTP/2 for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from tests.servers import refused_address


@asynccontextmanager
async def serve_tls(
    app: Any, authority: trustme.CA, folder: Path, *, alpn: tuple[str, ...] = ("h2", "http/1.1")
) -> AsyncIterator[str]:
    """Serve `app` over TLS by hypercorn, which has HTTP/2; gives its API's base address.

    `folder` gets the certificates: `ca.pem` is the one to trust.
    """
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "chain.pem", append=part > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    port = int(refused_address().rpartition(":")[2])
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile, config.keyfile = str(folder / "chain.pem"), str(folder / "key.pem")
    config.alpn_protocols = list(alpn)
    config.loglevel = "CRITICAL"
    config.graceful_timeout = 0.2
    stop = asyncio.Event()
    task = asyncio.create_task(hypercorn_serve(app, config, shutdown_trigger=stop.wait))
    try:
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield f"https://127.0.0.1:{port}/v1"
    finally:
        stop.set()
        await task
