"""The HTTP server: uvicorn with uvloop, with our protocol (`app.api.protocol`), and the way down.

SIGTERM turns readiness off at once, open answers get their grace period while the port still says 503, then everything closes
and the exit code is 0; a second signal is fast. TLS, load balancing and serving files at speed belong to a proxy in front.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.api.protocol import MAX_CONNECTIONS, BoundedProtocol
from app.core.errors import AprendizError, ConfigurationError
from app.core.settings import Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from uvicorn.lifespan.on import LifespanSendMessage

    from app.api.deps import Services

MAX_FRAME_BYTES = 1_048_576
_GC_THRESHOLD = 10_000
"""Objects between two runs of the youngest generation; a request makes some hundreds that reference counting takes away."""
_SPARE_FILES = 256
"""File descriptors kept for the database, engines and logs."""
_CLOSE_S = 2
_HURRY_S = 0.5
_AFTER_GRACE_S = 1.0
"""What answers that were ended by the drain have left to send their last event."""

_log = logging.getLogger(__name__)


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
        # What is there now stays to the end: the collector need not look at it again with every request.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])

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
