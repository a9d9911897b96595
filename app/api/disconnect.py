"""Work that ends when its client leaves: answered in whole or streamed, waiting in a queue or running.

ASGI tells of a client's end by ``http.disconnect`` and nothing else; without someone who listens, a server works on for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from app.core.exchange import exchange_of


class until_disconnect:  # noqa: N801  # used as a statement: `async with until_disconnect(scope, receive):`
    """Cancels the block at once when the client leaves; the block then raises ClientDisconnect.

    The request's body must have been read before: what comes on ``receive`` now is only the end. Where the server tells of the
    end by itself (`app.core.exchange`), nobody has to listen.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._exchange = exchange_of(scope)
        self._receive = receive
        self._gone = False
        self._worker: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stop: Callable[[], None] | None = None

    async def __aenter__(self) -> None:
        self._worker = asyncio.current_task()
        if self._exchange is None:
            self._watcher = asyncio.create_task(self._watch())
            return
        self._stop = self._exchange.on_leave(self._left)
        if self._exchange.client_is_gone:
            self._left()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self._stop()
        cancelled = isinstance(value, asyncio.CancelledError)
        if self._watcher is not None:
            self._watcher.cancel()
            try:
                await asyncio.gather(self._watcher, return_exceptions=True)
            except asyncio.CancelledError:  # the client may leave here, too
                cancelled = True
        if cancelled and self._gone and self._worker is not None and self._worker.uncancel() == 0:
            raise ClientDisconnect from None
        if cancelled and value is None:
            raise asyncio.CancelledError  # the server cancels too, at shutdown

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        if not self._gone and self._worker is not None:
            self._gone = True
            self._worker.cancel()
