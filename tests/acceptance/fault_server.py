"""Model servers that fail in every way (B18), over plain TCP or TLS, in a thread and an event loop of their own.

Which fault a request meets stands in the model that it asks for: ``FAULT`` or ``FAULT--whatever``. So each test has models, and
with them breakers, of its own, and needs no word with the server. The path of a request says in which format it speaks.
"""

from __future__ import annotations

import asyncio
import collections
import json
import socket
import ssl
import struct
import threading
import time
from typing import cast

from tests.acceptance.faults import FAULTS, WHOLE, Asked, Kind, Play, reply


class FaultServer:
    """Servers on 127.0.0.1, for as long as the ``with`` block.

    Attributes:
        requests: how often each model was asked for; paths: and each path.
        left: when the other side gave up a request of a model before its answer was whole.
        playing: connections with a request that has no whole answer yet; open: all of them.
        most_retrying: the most requests at once that were not the first of their model.
    """

    def __init__(self) -> None:
        self.requests: collections.Counter[str] = collections.Counter()
        self.paths: collections.Counter[str] = collections.Counter()
        self.left: dict[str, float] = {}
        self.playing: set[_Connection] = set()
        self.open: set[_Connection] = set()
        self.retrying = self.most_retrying = 0
        self._healed: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listeners: list[asyncio.Server] = []

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def listen(self, tls: ssl.SSLContext | None = None, *, eager: bool = False) -> int:
        """A port that it serves from now on. ``eager``: it answers before it has read anything."""

        async def start() -> int:
            listener = await self._loop.create_server(lambda: _Connection(self, eager=eager), "127.0.0.1", 0, ssl=tls)
            self._listeners.append(listener)
            return int(listener.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    def heal(self, model: str) -> None:
        """From now on ``model`` is answered well, if slowly."""
        self._healed.add(model)

    def play(self, asked: Asked) -> Play:
        """What to do about a request."""
        name = "slow" if asked.model in self._healed else asked.model.split("--")[0]
        return FAULTS[name](asked)

    async def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self.open):
            connection.abort()
        await asyncio.sleep(0.05)


class _Connection(asyncio.Protocol):
    """One connection: reads a request, plays its fault, and again."""

    def __init__(self, server: FaultServer, *, eager: bool) -> None:
        self._server = server
        self._eager = eager
        self._buffer = b""
        self._nth = 0
        self.model = ""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.open.add(self)
        if self._eager:
            self._transport.write(reply(WHOLE["openai"]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        if self._task is not None:
            self._server.left[self.model] = time.monotonic()
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end or self._eager:
            return
        _, _, length = head.lower().partition(b"content-length:")
        size = int(length.split(b"\r\n")[0] or 0)
        if len(rest) < size:
            return
        assert self._task is None, "a second request before the answer to the first"
        self._buffer = rest[size:]
        self._task = asyncio.get_running_loop().create_task(self._answer(head.split(b" ")[1].decode(), rest[:size]))

    def abort(self) -> None:
        """Cuts it at once, with a reset."""
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def _answer(self, path: str, body: bytes) -> None:
        server = self._server
        said = json.loads(body) if body else {}
        self._nth += 1
        self.model = model = said.get("model", "good")
        server.paths[path] += 1
        server.requests[model] += 1
        server.playing.add(self)
        again = server.requests[model]
        server.retrying += again > 1
        server.most_retrying = max(server.most_retrying, server.retrying)
        kind: Kind = "claude" if path.endswith("/messages") else "openai"
        try:
            play = server.play(Asked(kind, model, bool(said.get("stream")), self._nth, again))
            await self._perform(play, again=again > 1)
        finally:
            server.playing.discard(self)
            server.retrying -= again > 1
            self._task = None
        if play.end == "close":
            self._transport.close()
        elif play.end == "reset":
            self.abort()

    async def _perform(self, play: Play, *, again: bool) -> None:
        await asyncio.sleep(play.before_s)
        for piece in play.pieces:
            self._transport.write(piece.replace(b'"all ', b'"All ') if again else piece)
            await asyncio.sleep(play.pause_s)
            await self._writable.wait()
        if play.end == "hang":
            await asyncio.get_running_loop().create_future()
        if play.end == "reset":
            await asyncio.sleep(0.02)  # a reset may take what was sent just before with it
