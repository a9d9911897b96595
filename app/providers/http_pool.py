"""The open connections to one server: which are at work, which wait for their next request; bounded in number and in age."""

from __future__ import annotations

import asyncio

from app.core.errors import AprendizError
from app.providers.http_connection import HttpConnection

IDLE_S = 15.0
"""Servers keep an unused connection for 60 or 75 s as a rule: ours are given up well before."""
_MAX_IDLE = 256


class HttpPool:
    """The `Owner` of a client's connections.

    Args:
        keep_alive: keep connections for later requests.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        self._keep_alive = keep_alive
        self._closed = False
        self._live: set[HttpConnection] = set()
        self._idle: list[HttpConnection] = []
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Open connections, at work or not."""
        return len(self._live)

    def take(self) -> HttpConnection | None:
        """The connection that was used last, if one is still good: so the others may grow old and go."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        return None

    def close(self, error: AprendizError) -> None:
        """Cuts every connection; what waits on one ends with ``error``."""
        self._closed = True
        self._stop_sweeper()
        self._idle.clear()
        for connection in tuple(self._live):
            connection.fail(error.again())

    def made(self, connection: HttpConnection) -> None:
        """See `Owner.made`."""
        self._live.add(connection)
        if self._closed:  # it was on its way when everything ended
            connection.abort()

    def freed(self, connection: HttpConnection) -> None:
        """See `Owner.freed`."""
        if self._closed or not self._keep_alive or len(self._idle) >= _MAX_IDLE:
            connection.close()
            return
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_S, self._sweep)

    def lost(self, connection: HttpConnection) -> None:
        """See `Owner.lost`."""
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Closes what has idled too long; the oldest stand first."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        young = [connection for connection in self._idle if now - connection.idle_since < IDLE_S]
        for connection in self._idle[: len(self._idle) - len(young)]:
            connection.close()
        self._idle = young
        self._sweeper = loop.call_later(young[0].idle_since + IDLE_S - now, self._sweep) if young else None

    def _stop_sweeper(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
