"""Certificates that are renewed while they are served."""

import asyncio
import ssl
from pathlib import Path

import trustme

from tests.operating.processes import Serving

AUTHORITY, OTHER = trustme.CA(), trustme.CA()
TLS = {"certificate": "tls.crt", "key": "tls.key", "watch_seconds": 0.1}


def write(path: Path, content: bytes) -> None:
    """In one step, as those write who renew certificates."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def renew(folder: Path) -> str:
    """A new certificate and its key; gives the first as PEM text."""
    made = AUTHORITY.issue_cert("127.0.0.1")
    write(folder / "tls.key", made.private_key_pem.bytes())
    write(folder / "tls.crt", made.cert_chain_pems[0].bytes())
    return made.cert_chain_pems[0].bytes().decode().strip()


async def shown(proxy: Serving) -> str:
    """The certificate that a new connection gets. The client names no server: it has an address."""
    host, port = proxy.address.removeprefix("https://").split(":")
    pem = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
    return pem.strip()


def trusting(client: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    return context
