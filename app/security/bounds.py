"""Bounds on a request before it costs anything: number and size of headers, length of the URL, size and pace of the body.

Says nothing about what a body means, and bounds no answers. Headers that never end are the server's matter
(`app.api.server`), for no ASGI application sees them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from app.core.errors import (
    AprendizError,
    HeadersTooLarge,
    MalformedRequest,
    PayloadTooLarge,
    RequestTimeout,
    UrlTooLong,
)
from app.core.exchange import exchange_of
from app.core.settings import Server
from app.security.asgi import App, Message, Receive, Respond, Scope, Send

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32_768
MAX_URL_BYTES: Final = 8192
MIN_BYTES_PER_S: Final = 4096
"""Pace that a body must keep on average, beyond the first ``receive_timeout_s``; a trickle is cut."""


class RequestBounds:
    """Refuses what is out of bounds: 400, 408, 413, 414, 431.

    Args:
        server: ``max_body_bytes`` and ``receive_timeout_s``.
        respond: answers with an error.
        larger: paths of uploads, which may have that many bytes instead, whoever calls; the route asks who that is first.
    """

    def __init__(self, app: App, server: Server, *, respond: Respond, larger: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._max_body = server.max_body_bytes
        self._timeout_s = server.receive_timeout_s
        self._respond = respond
        self._larger = larger or {}

    def max_body(self, scope: Scope) -> int:
        """Most bytes that the body of this request may have."""
        return max(self._max_body, self._larger.get(scope["path"], 0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            _check_head(scope, self.max_body(scope))
        except AprendizError as error:
            await self._respond(error, scope, receive, _closing(send))
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request and its answer. A body that goes out of bounds replaces whatever the app makes of that by our refusal."""

    def __init__(self, bounds: RequestBounds, scope: Scope, receive: Receive, send: Send) -> None:
        self._bounds = bounds
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = 0
        self._complete = False
        self._waited = 0.0
        self._refusal: AprendizError | None = None
        self._started = False

    async def run(self) -> None:
        try:
            await self._bounds._app(self._scope, self.receive, self.send)
        except Exception:
            if self._refusal is None or self._started:
                raise
        if self._refusal is not None and not self._started:
            await self._bounds._respond(self._refusal, self._scope, self._receive, _closing(self._send))

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        exchange = exchange_of(self._scope)
        message = await (self._receive() if exchange is not None and exchange.body_is_here else self._in_time())
        if message["type"] != "http.request":
            return message
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received > (most := self._bounds.max_body(self._scope)):
            raise self._refuse(_too_large(most))
        return message

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self._started:
            return  # the app's own idea of what went wrong; ours is sent when it is through
        self._started = True
        await self._send(message)

    async def _in_time(self) -> Message:
        """The next piece, within the time that is left for it. Only waiting for the client counts, not our own work."""
        allowed = self._bounds._timeout_s + self._received / MIN_BYTES_PER_S - self._waited
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(allowed, self._bounds._timeout_s)):
                return await self._receive()
        except TimeoutError:
            raise self._refuse(RequestTimeout("The body did not arrive in time. Send it at once and without pauses.")) from None
        finally:
            self._waited += time.monotonic() - began

    def _refuse(self, error: AprendizError) -> AprendizError:
        self._refusal = error
        return error


def _check_head(scope: Scope, max_body: int) -> None:
    """Raises HeadersTooLarge, UrlTooLong, MalformedRequest or PayloadTooLarge for what the head alone tells."""
    size, lengths, encoded = 0, [], False
    for name, value in scope["headers"]:
        size += len(name) + len(value) + 4
        if name == b"content-length":
            lengths.append(value.strip())
        elif name == b"transfer-encoding":
            encoded = True
    if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"At most {MAX_HEADERS} header fields and {MAX_HEADER_BYTES} bytes of them are read.")
    if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) + 1 > MAX_URL_BYTES:
        raise UrlTooLong(f"At most {MAX_URL_BYTES} bytes of URL are read.")
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise MalformedRequest("The URL holds a NUL, which no name and no text here can hold.")
    if len(lengths) > 1 or (lengths and encoded):
        raise MalformedRequest("The length of the body is given more than once.")
    if lengths and (not lengths[0].isdigit() or len(lengths[0]) > 18):
        raise MalformedRequest("Content-Length is not a number.")
    if lengths and int(lengths[0]) > max_body:
        raise _too_large(max_body)


def _too_large(max_body: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body may have at most {max_body} bytes.")


def _closing(send: Send) -> Send:
    """Ends the connection with the answer, so that the server need not read what is left of the body."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return send_and_close
