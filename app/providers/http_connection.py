"""One HTTP/1.1 connection, with at most one request on it. It knows nothing of addresses, pools or formats.

A request is one write; a response is a head and pieces of a body, taken by one reader at a time. The connection is paused
while its reader is slow, and whoever waits on it hears of silence, of a cut, or of bytes that are not HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol, cast

import httptools

from app.core.errors import AprendizError, UpstreamError, UpstreamTimeout, UpstreamUnreachable

MAX_HEAD_BYTES = 32 << 10
MAX_FIELDS = 100
_HIGH_WATER_BYTES = 256 << 10
_STALE_WITHIN_S = 1.0
_DRAIN_S = 1.0
_LOGGED_CHARACTERS = 200
_PIECE_OVERHEAD = 64
"""Bytes that a piece costs beside its content: a body of one-byte chunks is not small."""

logger = logging.getLogger(__name__)


class StaleConnection(UpstreamUnreachable):
    """A kept connection was closed by the other side just as a request went out, before any byte of an answer.

    It had idled too long for the server, which did not take the request up: the one case in which asking again is safe.
    """


class Owner(Protocol):
    """Who hears what becomes of a connection."""

    def made(self, connection: HttpConnection) -> None:
        """It is open."""

    def freed(self, connection: HttpConnection) -> None:
        """Its response was taken whole; it may serve again."""

    def lost(self, connection: HttpConnection) -> None:
        """It is gone; said once, after `made`."""


class HttpConnection(asyncio.Protocol):
    """The protocol of one connection.

    Args:
        read_timeout_s: longest time that a reader waits for the head, and for each next piece.
        owner: hears what becomes of it.
    """

    def __init__(self, owner: Owner, *, read_timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_timeout_s = read_timeout_s
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since = 0.0
        self._sent_at = 0.0
        self._uses = 0
        self.idle_since = 0.0
        self._reset()
        self._over = True

    def _reset(self) -> None:
        self._parser: Any = None
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self._field_count = 0
        self._field_bytes = 0
        self._head_done = False
        self._framed = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._barren = 0
        self._seen = False
        self._fresh = False
        self._paused = False
        self._over = False
        self._reusable = False
        self._end_is_near = False
        self._draining = False
        self._error: AprendizError | None = None

    # -- for the client -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether a request may go out on it."""
        return self._over and self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes) -> None:
        """Writes a whole request. Raises UpstreamUnreachable where the connection is gone already."""
        if self._transport is None or self._transport.is_closing():
            raise UpstreamUnreachable("The model provider closed the connection. Try again.", retry_after=5)
        self._reset()
        self._uses += 1
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = self._loop.time()
        self._transport.write(data)

    async def head(self) -> None:
        """Returns when ``status`` and ``fields`` are there; raises UpstreamError, UpstreamTimeout, UpstreamUnreachable."""
        while not self._head_done:
            if self._error is not None:
                raise self._error.again()  # not itself: with its traceback it would hold, in a ring, all that was read
            await self._wait()

    async def piece(self) -> bytes:
        """What of the body has come since the last call, empty at its true end. Raises as `head` does."""
        while not self._pieces:
            if self._error is not None:
                raise self._error.again()  # not itself: with its traceback it would hold, in a ring, all that was read
            if self._over:
                return b""
            await self._wait()
        pieces = self._pieces
        self._pieces = []
        self._resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def framed(self) -> bool:
        """Whether the body says itself where it ends; otherwise the end of the connection is its end."""
        return self._framed

    def end_is_near(self) -> None:
        """The reader has all it wants, and the rest of the body must be little: `leave` then waits for it."""
        self._end_is_near = True

    def leave(self) -> None:
        """The reader is done. After a whole response the connection may serve again, else it is cut. Once a request."""
        self._pieces = []
        if self._over and self._error is None:
            self._free()
        elif self._end_is_near and not self._over:
            self._draining = True
            self._resume()
            self._stop_timer()
            self._timer = self._loop.call_later(_DRAIN_S, self.abort)
        else:
            self.abort()

    def fail(self, error: AprendizError) -> None:
        """Ends whatever waits here with ``error`` and cuts the connection."""
        if not self._over:
            self._error = error
            self._over = True
            self._wake()
        self.abort()

    def abort(self) -> None:
        """Cuts the connection at once."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Closes an idle connection in good form."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.close()

    def _resume(self) -> None:
        self._size = 0
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        loop = self._loop
        self._waiting_since = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._read_timeout_s, self._on_timer)
        self._fresh = False
        self._waiter = waiter = loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _on_timer(self) -> None:
        """One timer a connection: it is not moved with every piece, it looks when it fires how long the reader has waited."""
        self._timer = None
        if self._waiter is None:
            return
        left = self._waiting_since + self._read_timeout_s - self._loop.time()
        if left <= 0:
            self.fail(UpstreamTimeout("The model provider fell silent for too long. Try again."))
        else:
            self._timer = self._loop.call_later(left, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _free(self) -> None:
        self._resume()
        self._parser = None
        if self._transport is None or not self._reusable or self._transport.get_write_buffer_size():
            self.close()
            return
        self.idle_since = self._loop.time()
        self._owner.freed(self)

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.made(self)

    def data_received(self, data: bytes) -> None:
        if self._over:  # more than was asked for: whatever it is, it must not be taken for the next answer
            self._reusable = False
            self.abort()
            return
        self._seen = True
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._nonsense(repr(error))
        if self._barren > MAX_HEAD_BYTES:
            self._nonsense("a head, trailer or chunk extension without end")
        if self._fresh:
            if self._draining:
                self._drain()
            self._wake()

    def eof_received(self) -> None:
        if self._head_done and not self._framed and not self._over:
            self._over = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None
        self._stop_timer()
        if not self._over:
            self._error = self._cut(exc)
            self._over = True
        self._wake()
        self._owner.lost(self)

    def _cut(self, exc: Exception | None) -> AprendizError:
        quick = self._loop.time() - self._sent_at < _STALE_WITHIN_S
        if self._uses > 1 and not self._seen and quick:
            return StaleConnection("The model provider closed the connection. Try again.", retry_after=5)
        logger.info("a connection to a model server was lost", extra={"data": {"error": repr(exc)[:_LOGGED_CHARACTERS]}})
        return UpstreamUnreachable("The model provider cut the connection. Try again.", retry_after=5)

    def _drain(self) -> None:
        self._pieces = []
        if self._over:
            self._draining = False
            self._stop_timer()
            self.leave()
        elif self._size > MAX_HEAD_BYTES:
            self.abort()

    def _nonsense(self, why: str) -> None:
        if self._over and self._error is None:
            self._reusable = False  # the answer was whole; only what followed it was not HTTP
            return
        if self._error is None:
            logger.warning("a model server sent bad HTTP", extra={"data": {"error": why[:_LOGGED_CHARACTERS]}})
            self.fail(UpstreamError("The model provider sent an answer that is not HTTP."))

    # -- what the parser tells ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._over:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done or self._over:  # trailers mean nothing here
            return
        self._field_count += 1
        self._field_bytes += len(name) + len(value)
        if self._field_count > MAX_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            self._nonsense("a head that is too large")
            return
        name = name.lower()
        known = self.fields.get(name)
        self.fields[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        if self._over:
            return
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                self._nonsense("an upgrade that nobody asked for")
            return
        fields = self.fields
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or b"content-length" in fields):
            self._nonsense("a body framed in an unknown or ambiguous manner")
            return
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            self._nonsense("a compressed body that nobody asked for")
            return
        self.status = status
        self._framed = coding is not None or b"content-length" in fields or status in (204, 304)
        self._head_done = self._fresh = True

    def on_body(self, data: bytes) -> None:
        if self._over:
            return
        self._pieces.append(data)
        self._size += len(data) + _PIECE_OVERHEAD
        self._barren = 0
        self._fresh = True
        if self._size > _HIGH_WATER_BYTES and not self._paused and not self._draining and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._over:
            return
        if not self._head_done:  # 100 Continue and its like: the answer is yet to come
            self.fields = {}
            self._waiting_since = self._loop.time()
            return
        self._over = self._fresh = True
        self._reusable = self._framed and self._parser.should_keep_alive()
