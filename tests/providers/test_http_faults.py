"""The HTTP client under many faults, on both event loops: no socket, task or connection is left, and it serves on."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from app.core.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from app.providers.http import HttpClient
from app.providers.http_connection import HttpConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
FAULTS: dict[str, bytes | None] = {
    "good": OK,
    "good, closed after": OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
    "silent": b"",
    "half a head": OK[:20],
    "half a body": OK[:-1],
    "half a stream": CHUNKED,
    "garbage": b"\x16\x03\x01\x02\x00",
    "garbage within": CHUNKED + b"zz\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 8000,
    "packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
    "more than asked for": OK + OK,
}
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


class Upstream(asyncio.Protocol):
    """Answers each request with the fault that its path names, then leaves the connection open, closed or reset."""

    open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        Upstream.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        Upstream.open -= 1

    def data_received(self, data: bytes) -> None:
        _, name, end, *_ = data.split(b" ", 2)[1].decode().replace("_", " ").split("/")
        self.transport.write(FAULTS[name] or b"")
        if end == "closed":
            self.transport.close()
        elif end == "reset":
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("loop", LOOPS)
def test_many_faults_leave_nothing(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    chance = random.Random(7)

    async def one(client: HttpClient, name: str, end: str, leave: str) -> None:
        path = f"/{name.replace(' ', '_')}/{end}/"
        try:
            async with asyncio.timeout(5), client.request("POST", path, body=b"{}") as response:
                if leave == "early":
                    await response.piece()
                    return
                body = await response.read(limit=100)
        except UpstreamTimeout:
            return  # a good server may be slow here
        except UpstreamError:
            assert not name.startswith("good") or end == "reset"
            return
        assert body == b"ok"

    async def main() -> None:
        Upstream.open = 0
        listener = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", read_timeout_s=0.3)
        before = descriptors()
        for _ in range(10):
            tasks = [
                asyncio.create_task(
                    one(
                        client,
                        chance.choice(list(FAULTS)),
                        chance.choice(["open", "closed", "reset"]),
                        chance.choice(["early", "whole"]),
                    )
                )
                for _ in range(60)
            ]
            for task in chance.sample(tasks, 9):
                asyncio.get_running_loop().call_later(chance.random() * 0.01, task.cancel)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError), result
        await one(client, "good", "open", "whole")
        await client.aclose()
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == 1
        assert Upstream.open == 0
        assert descriptors() <= before
        listener.close()
        await listener.wait_closed()

    run(main, loop)
    gc.collect()
    assert not any(isinstance(thing, HttpConnection) for thing in gc.get_objects())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slow_reader_a_fast_server_and_a_cut(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    size = 8 << 20

    class Fast(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

        def data_received(self, data: bytes) -> None:
            cut = b"/cut" in data
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (size + cut))
            self.transport.write(b"x" * size)
            if cut:
                self.transport.close()

    async def main() -> None:
        listener = await asyncio.get_running_loop().create_server(Fast, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", read_timeout_s=0.5)
        for path in ("/", "/", "/cut"):
            got = largest = 0
            try:
                async with client.request("GET", path) as response:
                    await asyncio.sleep(0.7)  # longer than the timeout of silence: the reader's own pause is none
                    async for piece in response.pieces():
                        got += len(piece)
                        largest = max(largest, len(piece))
            except UpstreamUnreachable:
                assert path == "/cut"
            else:
                assert path == "/"
            assert got == size
            assert largest < 2 << 20
        await client.aclose()
        listener.close()
        await listener.wait_closed()

    run(main, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_idle_connections_are_given_up_in_time(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.providers.http_pool.IDLE_S", 0.1)

    async def main() -> None:
        Upstream.open = 0
        listener = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")

        async def ask() -> None:
            async with client.request("GET", "/good/open/") as response:
                await response.read(limit=2)

        await asyncio.gather(*(ask() for _ in range(10)))
        assert Upstream.open == 10
        await ask()
        assert Upstream.open == 10
        await asyncio.sleep(0.3)
        assert Upstream.open == 0
        await ask()
        await client.aclose()
        listener.close()
        await listener.wait_closed()

    run(main, loop)
