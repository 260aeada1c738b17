"""A renewed certificate is served without a restart, by a real server to real clients."""

import asyncio
import contextlib
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from stream_aligner_proxy.api.service import Loaded
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.operating.certificates import Certificates
from stream_aligner_proxy.settings.server import TlsSettings
from tests.operating.certificates import AUTHORITY, OTHER, TLS, renew, shown, trusting, write
from tests.operating.processes import ask, serving, text, upstream, write_config

pytestmark = pytest.mark.anyio


async def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(tmp_path: Path) -> None:
    first = renew(tmp_path)
    async with (
        upstream() as (_, behind),
        serving(write_config(tmp_path, behind, tls=TLS)) as proxy,
        httpx.AsyncClient(base_url=proxy.address, verify=trusting()) as client,
    ):
        assert text(await ask(client))
        assert await shown(proxy) == first
        second = renew(tmp_path)
        await proxy.logged("read the certificate of server.tls anew")
        assert await shown(proxy) == second
        # A certificate that the key does not belong to.
        write(tmp_path / "tls.crt", OTHER.issue_cert("127.0.0.1").cert_chain_pems[0].bytes())
        assert "server.tls: " in await proxy.logged("the certificate stays as it was")
        assert await shown(proxy) == second
        assert text(await ask(client))
        status = (await client.get("/status")).json()["configuration"]
        assert status["certificate_error"].startswith("server.tls: ")
        assert 'reloads_total{outcome="failed"} 1.0' in (await client.get("/metrics")).text
        third = renew(tmp_path)
        await proxy.logged("read the certificate of server.tls anew", times=2)
        assert await shown(proxy) == third
        status = (await client.get("/status")).json()["configuration"]
        assert status["certificate_error"] is None


async def test_on_sighup_another_ca_says_which_clients_may_come_in(tmp_path: Path) -> None:
    renew(tmp_path)
    old, new = AUTHORITY.issue_cert("old@example.org"), OTHER.issue_cert("new@example.org")
    write(tmp_path / "ca.crt", AUTHORITY.cert_pem.bytes())
    tls = {**TLS, "client_ca": "ca.crt", "watch_seconds": 3600}

    async def served(who: trustme.LeafCert) -> bool:
        async with httpx.AsyncClient(base_url=proxy.address, verify=trusting(who)) as client:
            try:
                return (await client.get("/healthz")).status_code == 200
            except httpx.TransportError:
                return False

    async with (
        upstream() as (_, behind),
        serving(write_config(tmp_path, behind, tls=tls)) as proxy,
    ):
        assert [await served(old), await served(new)] == [True, False]
        second = renew(tmp_path)
        write(tmp_path / "ca.crt", OTHER.cert_pem.bytes())
        proxy.tell(signal.SIGHUP)
        await proxy.logged("read the certificate of server.tls anew")
        assert await shown(proxy) == second
        assert [await served(old), await served(new)] == [False, True]


async def test_a_clients_session_does_not_outlive_its_ca(tmp_path: Path) -> None:
    renew(tmp_path)
    write(tmp_path / "ca.crt", AUTHORITY.cert_pem.bytes())
    tls = TlsSettings(
        certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "ca.crt"
    )
    certificates = Certificates(tls, Loaded(), Metrics())

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(await reader.read(1))
            await writer.drain()
        writer.close()

    client = trusting(AUTHORITY.issue_cert("client@example.org"))
    client.minimum_version = ssl.TLSVersion.TLSv1_3

    def spoken(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        """In a thread: asyncio's own client cannot be given a session."""
        with (
            socket.create_connection(address) as raw,
            client.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as connection,
        ):
            try:
                connection.sendall(b"x")
                return connection.recv(1), connection.session
            except OSError:
                return b"", None

    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificates.context) as server:
        address = server.sockets[0].getsockname()
        said, session = await asyncio.to_thread(spoken, None)
        assert said == b"x"
        write(tmp_path / "ca.crt", OTHER.cert_pem.bytes())
        await certificates.look(told=True)
        assert (await asyncio.to_thread(spoken, session))[0] == b""


async def test_a_pair_of_which_one_half_is_written_is_not_called_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renew(tmp_path)
    key = (tmp_path / "tls.key").read_bytes()
    loaded = Loaded()
    tls = TlsSettings(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    certificates = Certificates(tls, loaded, Metrics())
    renew(tmp_path)
    after = (tmp_path / "tls.key").read_bytes()
    write(tmp_path / "tls.key", key)
    await certificates.look(told=False)
    write(tmp_path / "tls.key", after)
    await certificates.look(told=False)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    write(tmp_path / "tls.key", key)
    for _ in range(3):
        await certificates.look(told=False)
    [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert loaded.certificate_error is not None
    assert loaded.certificate_error in said
