"""Server-sent events of things that last minutes and hours, as a FastAPI route answers them: history, then what happens.

Ends with the thing itself, when the session ends, when the client leaves or takes nothing, and when the service shuts down; a
client comes back with ``Last-Event-ID`` and misses nothing. Answers of models stream through `app.api.door`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api import sse
from app.api.disconnect import until_disconnect
from app.api.problems import log_failure, problem
from app.api.watch import ReaderTooSlow, Watch

if TYPE_CHECKING:
    from app.api.deps import Services
    from app.core.types import Principal

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_DRAIN_S: Final = 0.5

Item = tuple[int | None, str, Mapping[str, Any]]


class EventStream(Response):
    """Answers with ``events``: id (or None), name and data of each.

    The head goes out at once, so what can be refused must be refused before.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Item, None], *, services: Services, principal: Principal):
        super().__init__()
        self._events = events
        self._services = services
        self._principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = Watch(self._services, self._principal, send, heartbeat=sse.HEARTBEAT)
        try:
            async with until_disconnect(scope, receive):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                async with contextlib.aclosing(self._events):
                    await self._run(watch, send)
        except (ClientDisconnect, ReaderTooSlow):
            return

    async def _run(self, watch: Watch, send: Send) -> None:
        try:
            async with watch:
                while (item := await self._next()) is not None:
                    await watch.send(_bytes(*item))
                await watch.send(b"", more=False)
        except ReaderTooSlow:
            raise
        except Exception as error:  # noqa: BLE001  # told to the client and to the log: the head is out already
            log_failure(error)
            async with Watch(self._services, self._principal, send) as last:
                await last.send(sse.event("problem", problem(error)), more=False)

    async def _next(self) -> Item | None:
        """The next event; None at the end, and when the service shuts down."""
        if self._services.draining.is_set():
            return None
        coming = asyncio.ensure_future(anext(self._events, None))
        draining = asyncio.ensure_future(self._services.draining.wait())
        try:
            await asyncio.wait({coming, draining}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else None
        finally:
            for task in (coming, draining):
                task.cancel()
            await asyncio.gather(coming, draining, return_exceptions=True)


def _bytes(mark: int | None, name: str, data: Mapping[str, Any]) -> bytes:
    return (b"" if mark is None else b"id: %d\n" % mark) + sse.event(name, data)
