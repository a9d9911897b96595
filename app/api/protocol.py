"""One HTTP connection: uvicorn's protocol with a deadline and bounds for headers, and short ways for the hot path.

Before any request exists nothing in the app can defend itself, so this does. It knows nothing of routes and serves no sockets
but its own.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.api.problems import CONTENT_TYPE, REQUEST_PREFIX, problem
from app.core.errors import AprendizError, HeadersTooLarge, MalformedRequest, RequestTimeout
from app.core.exchange import EXTENSION
from app.core.ids import uuid7

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

MAX_HEADER_BYTES = 32_768
MAX_CONNECTIONS = 4096
_FRAMING_ALLOWANCE = 65_536
_FRAMING_PER_BODY_BYTE = 16
"""Chunk sizes, extensions and trailers may take so much beside the body; one-byte chunks take six."""
_LINGER_S = 2.0
_ABOUT_CONNECTION = frozenset({b"connection", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with a deadline for its headers and a bound on them."""

    receive_timeout_s: float = 10.0
    max_connections: int = MAX_CONNECTIONS

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._awaiting_headers = True
        self._header_bytes = 0
        self._framing_bytes = 0
        self._body_bytes = 0
        self._heads = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._leaving: set[Callable[[], None]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.max_connections:
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)
        for callback in tuple(self._leaving):
            callback()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._awaiting_headers:
            self._arm()
            room = MAX_HEADER_BYTES - self._header_bytes
            head, data = data[:room], data[room:]
            self._header_bytes += len(head)
            if head:
                super().data_received(head)
            if self._lingering or self.transport.is_closing() or self.transport.get_protocol() is not self:
                return  # refused, or a WebSocket by now
            if data and self._awaiting_headers:
                self._refuse(HeadersTooLarge(f"Headers may take {MAX_HEADER_BYTES} bytes together."))
                return
        if data:
            self._feed_body(data)

    def _feed_body(self, data: bytes) -> None:
        before, heads = self._body_bytes, self._heads
        super().data_received(data)
        if self._heads != heads:
            return  # the next request has begun in it, and counts anew
        self._framing_bytes += len(data) - (self._body_bytes - before)
        if self._framing_bytes > _FRAMING_ALLOWANCE + _FRAMING_PER_BODY_BYTE * self._body_bytes:
            self._refuse(MalformedRequest("The body's framing takes more than the body."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaiting_headers:  # trailers come later, and must not become headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._awaiting_headers = False
        self._framing_bytes = self._body_bytes = 0
        self._heads += 1
        if not _names_its_host(self.url, self.headers):
            raise httptools.HttpParserError("the target and the header Host differ")  # the parser's own class
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not None and self.cycle is not before:
            self.cycle.transport = cast("asyncio.Transport", _GentleTransport(self, self.cycle))
            self.scope["extensions"] = cast("Any", {EXTENSION: _Exchange(self.cycle, self._leaving)})
            setattr(self.cycle, "send", _Sender(self.cycle).send)  # noqa: B010  # on this one object; uvicorn makes it itself

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaiting_headers = True
        self._header_bytes = 0
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._awaiting_headers and not self._lingering and not self.transport.is_closing():
            # Answered before the body was read: its rest is dropped, for a short while only.
            self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def close_gently(self) -> None:
        """Closes after the last answer, so that a client that is still sending can read that answer.

        A socket that is closed with data unread resets the connection, and the reset may overtake the answer. So we end our
        half, and drop what comes until the client ends its own, for a short while only.
        """
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.close)

    @property
    def body_is_open(self) -> bool:
        """Whether a request has begun whose body has not ended."""
        return not self._awaiting_headers

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest("This is not HTTP/1.1 as RFC 9112 has it."))

    def _arm(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.receive_timeout_s, self._on_header_timeout)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._arm()  # a pipelined half request: it may wait while the answer before it is still under way
        elif self._header_bytes:
            self._refuse(RequestTimeout("The headers did not arrive in time."))
        else:
            self.transport.close()

    def _refuse(self, error: AprendizError) -> None:
        """Answers in place of the app, which never sees such a request, and closes."""
        self._disarm()
        if self._lingering or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(refusal(error))
            self.close_gently()
            return
        if not self.cycle.response_started:
            self.transport.write(refusal(error))
        self.transport.close()  # at once, so that the app learns of it


class _Sender:
    """A cycle's `send` that writes the usual head at once: uvicorn looks at each header with two regular expressions.

    Whatever is unusual about a head is left to uvicorn.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send

    async def send(self, message: ASGISendEvent) -> None:
        cycle = self._cycle
        if message["type"] != "http.response.start" or cycle.response_started or cycle.flow.write_paused or cycle.disconnected:
            await self._send(message)
            return
        headers = [*cycle.default_headers, *message.get("headers", ())]
        if cycle.scope["method"] == "HEAD" or message["status"] in _BODILESS or not _is_usual(headers):
            await self._send(message)
            return
        lines = [STATUS_LINE[message["status"]], *[b"%b: %b\r\n" % pair for pair in headers]]
        length = next((value for name, value in headers if name == b"content-length"), None)
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        cycle.chunked_encoding = length is None
        cycle.expected_content_length = 0 if length is None else int(length)
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"transfer-encoding: chunked\r\n\r\n" if length is None else b"\r\n")
        cycle.transport.write(b"".join(lines))


def _is_usual(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether no header is about the connection, and none holds a character that none may hold."""
    names = [name for name, _ in headers]
    return (
        _ABOUT_CONNECTION.isdisjoint(names)
        and HEADER_RE.search(b"".join(names)) is None
        and HEADER_VALUE_RE.search(b"".join([value for _, value in headers])) is None
    )


class _Exchange:
    """What the server knows and ASGI tells only to who waits for it; see `app.core.exchange.Exchange`."""

    def __init__(self, cycle: RequestResponseCycle, leaving: set[Callable[[], None]]) -> None:
        self._cycle = cycle
        self._leaving = leaving
        self.send = cycle.send

    @property
    def body_is_here(self) -> bool:
        return not self._cycle.more_body

    @property
    def client_is_gone(self) -> bool:
        return self._cycle.disconnected

    def on_leave(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._leaving.add(callback)
        return functools.partial(self._leaving.discard, callback)


class _GentleTransport:
    """A request's view of its connection: `close` after an answer that came before the end of the body is a gentle one."""

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        if self._cycle.response_complete and self._protocol.body_is_open:
            self._protocol.close_gently()
        else:
            self._protocol.transport.close()


def _names_its_host(target: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request target in absolute form names the host that the header ``Host`` names, which is what is checked."""
    if target.startswith((b"/", b"*")):
        return True
    authority = re.split(rb"[/?#]", target.partition(b"://")[2], maxsplit=1)[0]
    return any(name == b"host" and value.strip().lower() == authority.lower() for name, value in headers)


def refusal(error: AprendizError) -> bytes:
    """A complete HTTP/1.1 response with the problem, for requests that never reach the app."""
    request_id = uuid7()
    shown = problem(error) | {"instance": REQUEST_PREFIX + request_id}
    body = json.dumps(shown).encode()
    headers = (
        f"content-type: {CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
        "cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
        "content-security-policy: default-src 'none'\r\nconnection: close\r\n\r\n"
    )
    return STATUS_LINE[shown["status"]] + headers.encode() + body
