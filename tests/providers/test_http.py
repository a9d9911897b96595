"""The HTTP client against real sockets: what a response is, when a connection is kept, and that every fault is one of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.core.errors import (
    AprendizError,
    ConfigurationError,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.providers.http import HttpClient

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with what ``script`` says, and remembers what it saw."""

    def __init__(self, path: str, script: Script) -> None:
        self.path = path
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self.open += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                fields = head.lower().split(b"\r\n")
                length = next((int(line[15:]) for line in fields if line.startswith(b"content-length:")), 0)
                self.requests.append(head + await reader.readexactly(length))
                await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(runtime_dir: Path, script: Script) -> AsyncIterator[Server]:
    server = Server(str(runtime_dir / "h.sock"), script)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: Server, *, keep_alive: bool = True, read_timeout_s: float = 20) -> AsyncIterator[HttpClient]:
    client = HttpClient("http://engine", socket=server.path, keep_alive=keep_alive, read_timeout_s=read_timeout_s)
    try:
        async with asyncio.timeout(30):
            yield client
    finally:
        await client.aclose()


def says(*pieces: bytes, close: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if close:
            writer.close()

    return script


async def ask(client: HttpClient, path: str = "/x", *, body: bytes | None = b"{}") -> tuple[int, bytes]:
    async with client.request("POST", path, body=body) as response:
        return response.status, await response.read(limit=1 << 20)


async def test_what_goes_out(runtime_dir: Path) -> None:
    async with serving(runtime_dir, says(OK)) as server:
        client = HttpClient("http://host:81/base/", socket=server.path, headers={"Authorization": "Bearer k"})
        async with client.request("POST", "/v1/x?a=b", body=b"{}", headers={"Content-Type": "application/json"}) as response:
            assert response.status == 200
            assert response.headers == {"content-length": "2"}
            assert [piece async for piece in response.pieces()] == [b"ok"]
        async with client.request("GET", "/") as response:
            assert await response.read(limit=2) == b"ok"
        await client.aclose()
    assert server.requests[0] == (
        b"POST /base/v1/x?a=b HTTP/1.1\r\nHost: host:81\r\nUser-Agent: aprendiz\r\nAccept-Encoding: identity\r\n"
        b"Authorization: Bearer k\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert server.requests[1].startswith(b"GET /base/ HTTP/1.1\r\n")
    assert b"Content-Length" not in server.requests[1]
    assert "Bearer" not in repr(client)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "status", "body", "kept"),
    [
        ((OK,), 200, b"ok", True),
        ((OK[:9], OK[9:30], OK[30:]), 200, b"ok", True),
        ((CHUNKED, b"2\r\nok\r\n", b"0\r\n\r\n"), 200, b"ok", True),
        ((CHUNKED, b"1;a=b\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n"), 200, b"ok", True),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b"", True),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), 200, b"", True),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK), 200, b"ok", True),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",), 302, b"", True),
        ((OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),), 200, b"ok", False),
        ((OK.replace(b"1.1", b"1.0"),), 200, b"ok", False),
        ((OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",), 200, b"ok", False),
        ((OK + b"garbage\r\n\r\n",), 200, b"ok", False),
    ],
)
@pytest.mark.parametrize("keep_alive", [True, False])
async def test_bodies_end_where_they_say(
    runtime_dir: Path, pieces: tuple[bytes, ...], status: int, body: bytes, kept: bool, keep_alive: bool
) -> None:
    async with serving(runtime_dir, says(*pieces)) as server, client_of(server, keep_alive=keep_alive) as client:
        for _ in range(3):
            assert await ask(client) == (status, body)
            await asyncio.sleep(0.005)
        assert server.connections == (1 if kept and keep_alive else 3)
        assert (b"Connection: close" in server.requests[0]) is not keep_alive


async def test_a_body_may_end_with_its_connection(runtime_dir: Path) -> None:
    pieces = (b"HTTP/1.1 200 OK\r\nX: 1\r\nX: 2\r\n\r\no", b"k")
    async with (
        serving(runtime_dir, says(*pieces, close=True)) as server,
        client_of(server) as client,
        client.request("GET", "/") as response,
    ):
        assert not response.framed
        assert response.headers == {"x": "1, 2"}
        assert await response.read(limit=10) == b"ok"


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((b"",), UpstreamUnreachable),
        ((b"HTTP/1.1 200 OK\r\nContent-Le",), UpstreamUnreachable),
        ((LONG,), UpstreamUnreachable),
        ((CHUNKED + b"5\r\nhalf",), UpstreamUnreachable),
        ((CHUNKED + b"4\r\nhalf\r\n",), UpstreamUnreachable),
        ((CHUNKED + b"4\r\nhalf\r\n0\r\n",), UpstreamUnreachable),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), UpstreamUnreachable),
        ((CHUNKED + b"zz\r\n",), UpstreamError),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), UpstreamError),
        ((b"<html>" * 100,), UpstreamError),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 40_000 + b"\r\nContent-Length: 2\r\n\r\nok",), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"x" * 5_000] * 10), UpstreamError),
        ((b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 101 + b"Content-Length: 2\r\n\r\nok",), UpstreamError),
        ((b"HTTP/1.1 100 Continue\r\nX: x\r\n\r\n" * 120 + OK,), UpstreamError),
        ((CHUNKED + b"2\r\nok\r\n0\r\n", *[b"X: " + b"x" * 5_000 + b"\r\n"] * 10), UpstreamError),
        ((CHUNKED + b"2;", *[b"x" * 5_000] * 10), UpstreamError),
        ((CHUNKED, b"10000\r\n" + b"x" * 0x10000 + b"\r\n" * 1, b"0\r\n\r\n"), UpstreamError),  # beyond what the reader takes
    ],
)
async def test_faults_become_our_errors(runtime_dir: Path, pieces: tuple[bytes, ...], error: type[AprendizError]) -> None:
    async with serving(runtime_dir, says(*pieces, close=True)) as server, client_of(server) as client:
        with pytest.raises(error) as caught:
            async with client.request("POST", "/", body=b"{}") as response:
                await response.read(limit=1000)
        assert type(caught.value) is error
        assert server.connections == 1


async def test_a_stale_connection_is_asked_again_once(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) % 2:
            writer.write(OK)
        else:
            writer.close()

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        assert await ask(client, body=b"one") == (200, b"ok")
        assert await ask(client, body=b"two") == (200, b"ok")
        assert [request[-3:] for request in server.requests] == [b"one", b"two", b"two"]
        assert server.connections == 2


async def test_a_fresh_connection_is_never_asked_again(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 1:
            writer.write(OK)
        else:
            writer.close()

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        assert await ask(client) == (200, b"ok")
        with pytest.raises(UpstreamUnreachable):
            await ask(client)
        assert len(server.requests) == 3  # the kept one, then one fresh one


async def test_after_the_first_byte_nothing_is_asked_again(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 1:
            writer.write(OK)
            return
        writer.write(b"H")
        await writer.drain()
        writer.close()

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        await ask(client)
        with pytest.raises(UpstreamUnreachable):
            await ask(client)
        assert len(server.requests) == 2


async def test_what_comes_unasked_is_not_the_next_answer(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        if len(server.requests) == 1:
            await asyncio.sleep(0.02)
            writer.write(OK.replace(b"\r\n\r\nok", b"\r\n\r\nno"))

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        assert await ask(client) == (200, b"ok")
        for _ in range(1000):  # until it has come
            if len(client._pool) == 0:
                break
            await asyncio.sleep(0.005)
        assert await ask(client) == (200, b"ok")
        assert server.connections == 2


async def test_leaving_early_cuts_and_a_near_end_is_waited_for(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nok\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        for near, connections in ((False, 1), (True, 2), (True, 2)):
            async with client.request("GET", "/") as response:
                assert await response.piece() == b"ok"
                if near:
                    response.end_is_near()
            with pytest.raises(RuntimeError):
                await response.piece()
            await asyncio.sleep(0.05)
            assert server.connections == connections


async def test_silence_is_a_timeout_and_pieces_put_it_off(runtime_dir: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(6):
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
        await reader.read()

    async with serving(runtime_dir, script) as server, client_of(server, read_timeout_s=0.3) as client:
        got: list[bytes] = []

        async def follow() -> None:
            async with client.request("GET", "/") as response:
                async for piece in response.pieces():
                    got.append(piece)

        with pytest.raises(UpstreamTimeout):
            await follow()
        assert b"".join(got) == b"x" * 6
        await asyncio.sleep(0.02)
        assert server.open == 0


async def test_a_slow_reader_slows_the_server_down(runtime_dir: Path) -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (32 << 20))
        while sent < 32 << 20:
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        async with client.request("GET", "/") as response:
            await asyncio.sleep(0.2)
            assert sent < 4 << 20
            assert len(await response.read(limit=32 << 20)) == 32 << 20
        assert server.connections == 1


@pytest.mark.parametrize("first", [b"", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
async def test_closing_ends_what_waits(runtime_dir: Path, first: bytes) -> None:
    reached = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        reached.set()
        await reader.read()

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(3)]
        await reached.wait()
        await asyncio.sleep(0.02)
        await client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [UpstreamUnreachable] * 3
        with pytest.raises(UpstreamUnreachable):
            await ask(client)
        await asyncio.sleep(0.02)
        assert server.open == 0


@pytest.mark.parametrize("first", [b"", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
async def test_cancelling_closes_the_connection_at_once(runtime_dir: Path, first: bytes) -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        if await reader.read() == b"":
            gone.set()

    async with serving(runtime_dir, script) as server, client_of(server) as client:
        task = asyncio.create_task(ask(client))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(2):
            await gone.wait()
        assert server.connections == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nY: b"},
        {"X": "a\nb"},
        {"X": "\0"},
        {"X": "ñ漢"},
        {"X Y": "a"},
        {"X:": "a"},
        {"": "a"},
        {"Host": "x"},
        {"X": " a"},
    ],
)
async def test_headers_cannot_smuggle(headers: dict[str, str]) -> None:
    client = HttpClient("http://127.0.0.1:1")
    with pytest.raises(InvalidRequest) as caught:
        client.request("GET", "/", headers=headers)
    assert "a\r" not in caught.value.detail
    with pytest.raises(ConfigurationError):
        HttpClient("http://127.0.0.1:1", headers=headers)


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nX: y", "/ñ", "/" + "x" * 9000])
async def test_paths_cannot_smuggle(path: str) -> None:
    with pytest.raises(InvalidRequest):
        HttpClient("http://127.0.0.1:1").request("GET", path)
