"""Looks after one open stream beside its work: is the session still good, does the client still read, is a heartbeat due.

One timer for a stream instead of one for each piece: the pieces are the hot path. It knows nothing of what is streamed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from starlette.types import Send

from app.core.errors import AprendizError, Unauthenticated

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.core.types import Principal

TICK_S: Final = 1.5
"""How often a stream's session is asked after; the answer may be three seconds old."""
HEARTBEAT_S: Final = 15.0
STUCK_S: Final = 32.0
"""Longest time that a client may take nothing at all."""


class ReaderTooSlow(Exception):
    """The client takes nothing any more: its connection is cut."""


class Watch:
    """``async with Watch(...)`` around the work of one stream, in one task; `send` inside.

    The block raises Unauthenticated where the session ends, and ReaderTooSlow where the client takes nothing for `STUCK_S`
    seconds, or its session ended meanwhile.

    Args:
        heartbeat: sent when nothing else was for `HEARTBEAT_S` seconds; empty: never.
        head_s: after so many seconds without a `send`, ``open_head`` is called, once; it sends the response's head.
    """

    def __init__(
        self,
        services: Services,
        principal: Principal,
        send: Send,
        *,
        heartbeat: bytes = b"",
        head_s: float = 0,
        open_head: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._services = services
        self._principal = principal
        self._send = send
        self._heartbeat = heartbeat
        self._head_s = head_s
        self._open_head = open_head
        self._begun = self._sent = time.monotonic()
        self._since: float | None = None
        self._worker: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._reason: Exception | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.current_task()
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._reason is not None and self._worker is not None:
            cancelled = isinstance(value, asyncio.CancelledError)
            if self._worker.uncancel() == 0 and cancelled:
                raise self._reason from None

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Sends a piece once the client takes it."""
        if self._writing is not None:
            await asyncio.wait([self._writing])  # the head or a heartbeat: one writer at a time
        self._since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._since = None
        self._sent = time.monotonic()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            now = time.monotonic()
            valid = await self._still_valid()
            stuck = self._since is not None and now - self._since >= TICK_S
            if stuck and self._since is not None and (not valid or now - self._since >= STUCK_S):
                self._end(ReaderTooSlow())
            elif not valid:
                self._end(Unauthenticated("The session has ended. Log in again."))
            elif self._since is None:
                await self._show_life(now)
        finally:
            self._looking = None
            if self._reason is None:
                self._arm()

    async def _still_valid(self) -> bool:
        try:
            return await self._services.authenticator.still_valid(self._principal)
        except AprendizError:
            return True  # the database cannot say now; it is asked again in a moment

    async def _show_life(self, now: float) -> None:
        if self._open_head is not None and self._sent == self._begun:
            if now - self._begun >= self._head_s:
                opening, self._open_head = self._open_head, None
                await self._write(opening)
        elif self._heartbeat and now - self._sent >= HEARTBEAT_S:
            await self._write(self._beat)

    async def _beat(self) -> None:
        await self._send({"type": "http.response.body", "body": self._heartbeat, "more_body": True})

    async def _write(self, write: Callable[[], Awaitable[None]]) -> None:
        self._writing = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(STUCK_S):  # a client that reads nothing takes no heartbeat either
                await write()
            self._sent = time.monotonic()
        except TimeoutError:
            self._end(ReaderTooSlow())
        finally:
            self._writing.set_result(None)
            self._writing = None

    def _end(self, reason: Exception) -> None:
        self._reason = reason
        if self._worker is not None:
            self._worker.cancel()
