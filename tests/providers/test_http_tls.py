"""The HTTP client over TLS: the certificate is always checked, and a cut is no end."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.core.errors import UpstreamUnreachable
from app.providers.http import HttpClient

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of key and certificate, each its own authority: good and expired for localhost, other for another name."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    for name, host, days in (("good", "localhost", "2"), ("expired", "localhost", "-1"), ("other", "other.example", "2")):
        key, request = f"{name}.key", f"{name}.csr"
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
        subject = ("-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
        openssl("req", *kind, *subject, "-out", request)
        signing = ("-signkey", key, "-days", days, "-copy_extensions", "copy")
        openssl("x509", "-req", "-in", request, *signing, "-out", f"{name}.crt")
        pem = (folder / f"{name}.key").read_bytes() + (folder / f"{name}.crt").read_bytes()
        (folder / f"{name}.pem").write_bytes(pem)
    return folder


def trusting(certificates: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / f"{name}.crt"))


class Server:
    def __init__(self) -> None:
        self.requests = 0
        self.names: list[str | None] = []
        self.answer = OK
        self.cut = False


@asynccontextmanager
async def serving(certificates: Path, name: str) -> AsyncIterator[tuple[int, Server]]:
    state = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem")
    context.sni_callback = lambda _socket, server_name, _context: state.names.append(server_name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                state.requests += 1
                writer.write(state.answer)
                await writer.drain()
                if state.cut:
                    await asyncio.sleep(0.02)
                    writer.transport.abort()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        async with asyncio.timeout(20):
            yield listener.sockets[0].getsockname()[1], state
    finally:
        listener.close()
        await asyncio.sleep(0.02)
        await listener.wait_closed()


async def ask(client: HttpClient) -> bytes:
    async with client.request("GET", "/") as response:
        return await response.read(limit=1000)


async def test_a_trusted_server_is_asked_by_name_on_a_kept_connection(certificates: Path) -> None:
    async with serving(certificates, "good") as (port, server):
        client = HttpClient(f"https://localhost:{port}", tls=trusting(certificates, "good"))
        assert [await ask(client) for _ in range(3)] == [b"ok"] * 3
        assert server.names == ["localhost"]
        assert server.requests == 3
        await client.aclose()


@pytest.mark.parametrize(("name", "trusted"), [("good", "other"), ("expired", "expired"), ("other", "other"), ("good", None)])
async def test_bad_certificates_get_no_request(certificates: Path, name: str, trusted: str | None) -> None:
    async with serving(certificates, name) as (port, server):
        client = HttpClient(f"https://localhost:{port}", tls=trusting(certificates, trusted) if trusted else None)
        with pytest.raises(UpstreamUnreachable, match="secure"):
            await ask(client)
        await client.aclose()
        assert server.requests == 0


async def test_an_address_in_numbers_is_checked_too(certificates: Path) -> None:
    async with serving(certificates, "good") as (port, server):
        client = HttpClient(f"https://127.0.0.1:{port}", tls=trusting(certificates, "good"))
        with pytest.raises(UpstreamUnreachable, match="secure"):
            await ask(client)
        await client.aclose()
        assert server.requests == 0


async def test_a_server_without_tls(certificates: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(OK)
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = HttpClient(f"https://localhost:{listener.sockets[0].getsockname()[1]}")
    with pytest.raises(UpstreamUnreachable):
        await ask(client)
    await client.aclose()
    listener.close()
    await listener.wait_closed()


async def test_a_server_that_never_shakes_hands() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = HttpClient(f"https://localhost:{listener.sockets[0].getsockname()[1]}", connect_timeout_s=0.2)
    with pytest.raises(UpstreamUnreachable, match="in time"):
        await ask(client)
    await client.aclose()
    listener.close()
    await listener.wait_closed()


@pytest.mark.parametrize("answer", [OK[:-1], b"HTTP/1.1 200 OK\r\n", b""])
async def test_a_connection_that_is_cut_is_no_end(certificates: Path, answer: bytes) -> None:
    async with serving(certificates, "good") as (port, server):
        server.answer, server.cut = answer, True
        client = HttpClient(f"https://localhost:{port}", tls=trusting(certificates, "good"))
        with pytest.raises(UpstreamUnreachable):
            await ask(client)
        await client.aclose()


async def test_leaving_early_and_closing(certificates: Path) -> None:
    async with serving(certificates, "good") as (port, server):
        server.answer = OK[:-1]
        client = HttpClient(f"https://localhost:{port}", tls=trusting(certificates, "good"))
        async with client.request("GET", "/") as response:
            assert await response.piece() == b"o"
        task = asyncio.create_task(ask(client))
        await asyncio.sleep(0.1)
        await client.aclose()
        with pytest.raises(UpstreamUnreachable):
            await task
        assert server.requests == 2
