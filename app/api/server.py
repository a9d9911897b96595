"""The HTTP server: uvicorn with uvloop, and the bounds that uvicorn itself does not have.

Before any request exists nothing in the app can defend itself, so this does: a connection that has not sent its headers in
time is cut, headers are refused before they are buffered, connections are counted. And the way down: SIGTERM turns readiness
off at once, open answers get their grace period while the port still says 503, then everything closes and the exit code is 0;
a second signal is fast. TLS, load balancing and serving files at speed belong to a proxy in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from app.api.problems import CONTENT_TYPE, REQUEST_PREFIX, problem
from app.core.errors import AprendizError, ConfigurationError, HeadersTooLarge, MalformedRequest, RequestTimeout
from app.core.exchange import EXTENSION
from app.core.ids import uuid7
from app.core.settings import Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from uvicorn.lifespan.on import LifespanSendMessage

    from app.api.deps import Services

MAX_HEADER_BYTES = 32_768
MAX_CONNECTIONS = 4096
MAX_FRAME_BYTES = 1_048_576
_SPARE_FILES = 256
"""File descriptors kept for the database, engines and logs."""
_FRAMING_ALLOWANCE = 65_536
_FRAMING_PER_BODY_BYTE = 16
"""Chunk sizes, extensions and trailers may take so much beside the body; one-byte chunks take six."""
_LINGER_S = 2.0
_CLOSE_S = 2
_HURRY_S = 0.5
_AFTER_GRACE_S = 1.0
"""What answers that were ended by the drain have left to send their last event."""

_log = logging.getLogger(__name__)


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
        before = self._body_bytes
        super().data_received(data)
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
        if not _names_its_host(self.url, self.headers):
            raise httptools.HttpParserError("the target and the header Host differ")  # the parser's own class
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not None and self.cycle is not before:
            self.cycle.transport = cast("asyncio.Transport", _GentleTransport(self, self.cycle))
            self.scope["extensions"] = cast("Any", {EXTENSION: _Exchange(self.cycle, self._leaving)})

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


class _Exchange:
    """What the server knows and ASGI tells only to who waits for it; see `app.core.exchange.Exchange`."""

    def __init__(self, cycle: RequestResponseCycle, leaving: set[Callable[[], None]]) -> None:
        self._cycle = cycle
        self._leaving = leaving

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


class Lifespan(LifespanOn):
    """The app's start and end; a failure that is said in one line, see `Server.startup`, is not logged with a traceback too."""

    async def send(self, message: LifespanSendMessage) -> None:
        if message["type"] == "lifespan.startup.failed" and _start_failure(cast("FastAPI", self.config.app)) is not None:
            message["message"] = ""
        await super().send(message)


class SocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose refused handshake, an answer in plain HTTP, is no error in the log."""

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True


def _start_failure(app: FastAPI) -> AprendizError | None:
    """What the app's lifespan left in its state, where it could not start."""
    return getattr(app.state, "start_failure", None)


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


class Server(uvicorn.Server):
    """uvicorn's server with another way down: drain first, with the port open; exit code 0 after a signal."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_s: float) -> None:
        super().__init__(config)
        self._fastapi = app
        self._grace_s = grace_s
        self._hurry = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's. Raises what the app could not start for, where that is an error of ours, instead of leaving."""
        try:
            await super().startup(sockets)
        except SystemExit:
            failure = _start_failure(self._fastapi)
            if failure is not None:
                raise failure from None
            raise

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Any further one: fast."""
        if self.should_exit:
            self._hurry = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but the signal is not raised again afterwards: a drained service ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains, then closes. Takes at most the grace period and five seconds."""
        services = cast("Services", self._fastapi.state.services)
        services.draining.set()
        deadline = time.monotonic() + self._grace_s + _AFTER_GRACE_S
        drain = asyncio.create_task(services.models.drain(self._grace_s))
        # Polled, for the signal handler may set nothing but a plain flag.
        while time.monotonic() < deadline and not self._hurry and not (drain.done() and not self.server_state.tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        drain.cancel()
        [failure] = await asyncio.gather(drain, return_exceptions=True)
        if isinstance(failure, Exception):
            _log.error("draining failed", exc_info=failure)
        await self._end_what_runs(services)
        await super().shutdown(sockets)

    async def _end_what_runs(self, services: Services) -> None:
        """Ends open answers with their last event if that goes at once, and cancels whatever is left then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HURRY_S):
                await services.models.drain(0)
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=_HURRY_S)
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=_HURRY_S)


def make_server(app: FastAPI, settings: Settings) -> Server:
    """The server for ``app``, not yet started. Raises nothing; the port is bound by `run` or by uvicorn."""

    class Protocol(BoundedProtocol):
        receive_timeout_s = settings.server.receive_timeout_s
        max_connections = _raise_file_limit()

    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        loop="uvloop",
        http=Protocol,
        ws=SocketProtocol,
        ws_max_size=MAX_FRAME_BYTES,
        ws_max_queue=4,
        ws_per_message_deflate=False,  # a compressed frame is bounded before, not after it grows
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    config.load()
    config.lifespan_class = Lifespan
    return Server(config, app, settings.server.grace_s)


def run(create_app: Callable[[Settings], FastAPI], settings: Settings) -> None:
    """Binds, serves until a signal, and returns. The app gets the settings with the real port.

    Raises:
        ConfigurationError: the address cannot be bound.
        AprendizError: what the app could not start for.
    """
    with bound_socket(settings.server.host, settings.server.port) as listener:
        port = listener.getsockname()[1]
        settings = settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})})
        make_server(create_app(settings), settings).run(sockets=[listener])


@contextlib.contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A bound, not yet listening TCP socket. Raises ConfigurationError with the reason."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(f"server.host {host!r} is not an address of this machine: {error.strerror}.") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with server.port (--port)."
            ) from error
        yield listener


def _raise_file_limit() -> int:
    """Raises the soft limit of open files as far as needed; returns how many connections then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(64, min(MAX_CONNECTIONS, soft - _SPARE_FILES))
