"""Where the HTTP client may go (B11): one strict reader of addresses, one look-up, a connection to what was checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from app.core.errors import ConfigurationError, UpstreamUnreachable
from app.providers.http import HttpClient
from app.providers.http_address import is_public, parse_base_url, resolve


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "prefix", "header"),
    [
        ("http://localhost", "http", "localhost", 80, "", "localhost"),
        ("HTTPS://API.Example.COM/", "https", "api.example.com", 443, "", "api.example.com"),
        ("https://api.example.com:8443/v1/", "https", "api.example.com", 8443, "/v1", "api.example.com:8443"),
        ("http://my_vllm:80/a/b%20c", "http", "my_vllm", 80, "/a/b%20c", "my_vllm"),
        ("http://127.0.0.1:8000", "http", "127.0.0.1", 8000, "", "127.0.0.1:8000"),
        ("http://[::1]:8000/x", "http", "::1", 8000, "/x", "[::1]:8000"),
        ("https://[2001:DB8:0::1]", "https", "2001:db8::1", 443, "", "[2001:db8::1]"),
    ],
)
def test_plain_addresses_are_read(url: str, scheme: str, host: str, port: int, prefix: str, header: str) -> None:
    address = parse_base_url(url)
    assert (address.scheme, address.host, address.port, address.prefix) == (scheme, host, port, prefix)
    assert address.host_header == header
    assert address.tls is (scheme == "https")


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost", "localhost:80", "//localhost", "http:", "http://", "http:///x", "http:/localhost", "http:localhost"),
        *("ftp://localhost", "file:///etc/passwd", "gopher://localhost", "data:,x", "unix:///run/x", "ws://localhost"),
        *("http://user@localhost", "http://user:secret@localhost", "http://a@b@c", "http://localhost:80@127.0.0.1"),
        *("http://localhost?x", "http://localhost/?x=1", "http://localhost#x", "http://localhost/#", "http://localhost;x"),
        *("http://local\\host", "http:\\\\localhost", "http://a\\@b", "http://localhost/\\x", "http://local\thost"),
        *("http://localhost\n", "http://localhost\r\nX: y", " http://localhost", "http://localhost ", "http://loc al"),
        *("http://localhost\0", "http://ñandú.example", "http://127。0。0。1", "http://①②⑦.0.0.1", "http://localhost/ñ"),
        *("http://localhost:", "http://localhost:0", "http://localhost:65536", "http://localhost:1x", "http://localhost:-1"),
        *("http://localhost:999999", "http://a..b", "http://.a", "http://-a", "http://" + "a" * 300, "http://%31"),
        *("http://[::1", "http://::1", "http://[::1]x", "http://[fe80::1%25eth0]", "http://[1.2.3.4]", "http://[gg::]"),
        *("http://0x7f.0.0.1", "http://0x7f000001", "http://2130706433", "http://017700000001", "http://127.1", "http://0"),
        *("http://1.2.3.4.5", "http://256.0.0.1", "http://127.0.0.01", "http://127.0.0.1.", "http://x.0x", "http://x.1"),
    ],
)
def test_anything_else_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_base_url(url)
    assert "secret" not in caught.value.detail
    with pytest.raises(ConfigurationError):
        HttpClient(url)


PRIVATE = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1"),
    *("192.0.2.1", "::", "::1", "fe80::1", "fec0::1", "fd00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    *("64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::", "100::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_in_all_their_forms(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(ConfigurationError, match="private"):
        HttpClient(f"http://{host}:1", allow_private=False)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


class Names:
    """What the loop's resolver says, one answer after the other; counts the questions."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.questions: list[tuple[str, int]] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.questions.append((host, port))
        found = self.answers.pop(0)
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]


@pytest.fixture
def listener() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


async def test_a_name_that_leads_inside_is_not_connected_to(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    names = Names(["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "fe80::1%lo"], ["::ffff:127.0.0.1"])
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    client = HttpClient(f"http://models.example:{port}", allow_private=False)
    for _ in range(4):
        with pytest.raises(UpstreamUnreachable, match="private"):
            async with client.request("GET", "/"):
                pass
    assert names.questions == [("models.example", port)] * 4
    with pytest.raises(BlockingIOError):
        listener.accept()
    await client.aclose()


async def test_one_look_up_a_connection_and_it_goes_to_what_was_checked(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere the second time (DNS rebinding) finds no second time."""
    port = listener.getsockname()[1]
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo
    names = Names(["127.0.0.1"])
    asked: list[str] = []

    async def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "models.example":
            return await names.getaddrinfo(host, *args, **kwargs)
        asked.append(host)
        return await real(host, *args, **kwargs)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    client = HttpClient(f"http://models.example:{port}", read_timeout_s=5)

    async def ask() -> None:
        async with client.request("GET", "/"):
            pass

    task = asyncio.create_task(ask())
    connection, _ = await loop.sock_accept(listener)
    with connection:
        head = await loop.sock_recv(connection, 1000)
        assert f"Host: models.example:{port}\r\n".encode() in head
        await loop.sock_sendall(connection, b"HTTP/1.1 204 No Content\r\n\r\n")
        await task
    assert names.questions == [("models.example", port)]
    assert all(ipaddress.ip_address(host) for host in asked)
    await client.aclose()


async def test_the_next_address_is_tried(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port = listener.getsockname()[1]
    names = Names(["127.0.0.2", "127.0.0.1"])
    loop = asyncio.get_running_loop()
    assert await resolve(parse_base_url("http://127.0.0.1:1"), allow_private=True) == ["127.0.0.1"]
    monkeypatch.setattr(loop, "getaddrinfo", names.getaddrinfo)
    client = HttpClient(f"http://models.example:{port}", read_timeout_s=0.2)

    async def ask() -> None:
        async with client.request("GET", "/"):
            pass

    task = asyncio.create_task(ask())
    connection, _ = await loop.sock_accept(listener)
    connection.close()
    with pytest.raises(UpstreamUnreachable):
        await task
    await client.aclose()


async def test_unknown_names_and_refused_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}")
    with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
        async with client.request("GET", "/"):
            pass

    async def fails(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
    unknown = HttpClient("http://models.example")
    with pytest.raises(UpstreamUnreachable, match="resolved"):
        async with unknown.request("GET", "/"):
            pass
    await client.aclose()
    await unknown.aclose()


async def test_connecting_has_a_deadline_and_ends_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    never = asyncio.Event()

    async def hangs(*_: Any, **__: Any) -> Any:
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hangs)
    client = HttpClient("http://models.example", connect_timeout_s=0.05)

    async def ask(client: HttpClient) -> None:
        async with client.request("GET", "/"):
            pass

    with pytest.raises(UpstreamUnreachable, match="in time"):
        await ask(client)
    await client.aclose()
    patient = HttpClient("http://models.example", connect_timeout_s=50)
    task = asyncio.create_task(ask(patient))
    await asyncio.sleep(0.02)
    await patient.aclose()
    with pytest.raises(UpstreamUnreachable, match="closed"):
        await task
