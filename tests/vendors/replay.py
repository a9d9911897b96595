"""The HTTP under the vendors' doubles: one asyncio server that records what it gets and sends what it is told, byte for byte.

It speaks just enough HTTP/1.1 (Content-Length bodies in, chunked or sized bodies out, keep-alive), so that a test can also make
it break any rule of it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The JSON in the body, or None without one."""
        return json.loads(self.raw) if self.raw else None


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer. Several ``pieces`` go out one by one, chunked, ``pause_s`` apart; one goes out with its length.

    ``cut``: the connection is cut after the pieces, before the end of the body. ``hang``: nothing comes after them, until the
    client leaves. ``close``: the connection ends after a whole answer.
    """

    status: int = 200
    pieces: Sequence[bytes] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0
    cut: bool = False
    hang: bool = False
    close: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes as they are in place of an HTTP answer, then the end of the connection (``reset``: by RST), or with ``hang``
    nothing more until the client leaves.
    """

    data: bytes = b""
    reset: bool = False
    hang: bool = False


Scripted = Reply | Raw
Answer = Callable[[Received], Awaitable[Scripted] | Scripted]

_REASONS = {200: "OK", 301: "Moved Permanently", 302: "Found", 307: "Temporary Redirect", 308: "Permanent Redirect"}
_MAX_BODY = 64 << 20


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None, /, **named: str) -> Reply:
    """A JSON answer. Headers also by name, with underscores for dashes."""
    more = {name.replace("_", "-"): text for name, text in named.items()}
    return Reply(status, (json.dumps(value).encode(),), {"Content-Type": "application/json", **(headers or {}), **more})


def as_events(payloads: Sequence[Any], **options: Any) -> Reply:
    """A stream of server-sent events: each payload JSON, or text as it is."""
    pieces = [f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode() for item in payloads]
    return Reply(200, pieces, {"Content-Type": "text/event-stream; charset=utf-8"}, **options)


class ReplayServer:
    """A server on a free port of 127.0.0.1; use as ``async with``.

    ``received``: all requests so far. ``push`` scripts the next answers, one a request; without one, ``answer`` is asked.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.left = 0
        """Answers that the client did not wait for."""
        self.connections = 0
        """Connections accepted so far."""
        self.open = 0
        """Connections open now."""
        self.answering = 0
        """Requests being answered now."""
        self._script: deque[Any] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def push(self, *scripted: Any) -> None:
        """Answers for the next requests, in their order: `Reply`, `Raw`, or what `render` makes one of."""
        self._script.extend(scripted)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def answer(self, request: Received) -> Scripted:
        """What an unscripted request gets."""
        return as_json({"error": {"message": "Not found", "type": "invalid_request_error", "param": None, "code": None}}, 404)

    def render(self, scripted: Any, request: Received) -> Scripted:
        """Makes a scripted thing an answer; servers with more kinds of things override it."""
        assert isinstance(scripted, Reply | Raw)
        return scripted

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while (request := await _read(reader)) is not None:
                self.received.append(request)
                scripted = self.render(self._script.popleft(), request) if self._script else await self.answer(request)
                self.answering += 1
                try:
                    if not await self._send(scripted, reader, writer):
                        break
                finally:
                    self.answering -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        except asyncio.CancelledError:
            pass  # the server is closing; asyncio's streams would report it
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _send(self, scripted: Scripted, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open for another request."""
        if isinstance(scripted, Raw):
            writer.write(scripted.data)
            await writer.drain()
            if scripted.hang:
                await reader.read(1)
                raise ConnectionResetError
            if scripted.reset:
                writer.transport.abort()
            return False
        sized = len(scripted.pieces) == 1 and not (scripted.cut or scripted.hang)
        writer.write(_head(scripted, sized=sized))
        if sized:
            writer.write(scripted.pieces[0])
            await writer.drain()
            return not scripted.close
        left = asyncio.create_task(reader.read(1))  # nothing more comes before the answer's end, but the client's leaving
        try:
            return await self._send_pieces(scripted, left, writer)
        finally:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)

    async def _send_pieces(self, reply: Reply, left: asyncio.Task[bytes], writer: asyncio.StreamWriter) -> bool:
        for number, piece in enumerate(reply.pieces):
            if number and reply.pause_s:
                await asyncio.wait((left,), timeout=reply.pause_s)
            if left.done():
                raise ConnectionResetError
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if reply.hang:
            await left
            raise ConnectionResetError
        if reply.cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not reply.close


def _head(reply: Reply, *, sized: bool) -> bytes:
    head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}"]
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    head.append(f"Content-Length: {len(reply.pieces[0])}" if sized else "Transfer-Encoding: chunked")
    if reply.close:
        head.append("Connection: close")
    return "\r\n".join([*head, "", ""]).encode()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    """The next request, or None where the client has gone between two."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    length = int(headers.get("content-length", "0"))
    assert length <= _MAX_BODY
    return Received(method, path, headers, await reader.readexactly(length))
