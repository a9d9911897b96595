"""Server-sent events: their bytes, and the bounded hand-over between who makes events and who sends them.

The producer stops when the reader is slow (`Mailbox` holds a few dozen events, the socket's own buffer is bounded), and events
that are ready together go out in one write, each still an event of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

HEARTBEAT: Final = b": still here\n\n"
_encode = msgspec.json.Encoder().encode


def event(name: str, data: Any) -> bytes:
    """One event; ``data`` becomes one line of JSON."""
    return b"event: " + name.encode() + b"\ndata: " + _encode(data) + b"\n\n"


def delta(text: str) -> bytes:
    """The event ``delta``: the next piece of the answer's text."""
    return b'event: delta\ndata: {"text":' + _encode(text) + b"}\n\n"


class Mailbox(Generic[T]):
    """Bounded, for one producer and one consumer in one event loop."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._consumer: asyncio.Future[None] | None = None
        self._producer: asyncio.Future[None] | None = None

    async def put(self, item: T) -> None:
        """Hands over; waits while the box is full."""
        while len(self._items) >= self._size:
            self._producer = asyncio.get_running_loop().create_future()
            await self._producer
        self._items.append(item)
        _wake(self._consumer)

    def end(self, error: BaseException | None = None) -> None:
        """No more items come; ``error`` is raised to the consumer after the last one."""
        self._ended = True
        self._error = error
        _wake(self._consumer)

    def poke(self) -> None:
        """Wakes the consumer, with whatever there is."""
        _wake(self._consumer)

    async def take(self, timeout_s: float) -> list[T] | None:
        """All that is ready, at least one; an empty list after ``timeout_s`` without any; None after the end."""
        if not self._items and not self._ended:
            loop = asyncio.get_running_loop()
            self._consumer = loop.create_future()
            timer = loop.call_later(timeout_s, _wake, self._consumer)
            try:
                await self._consumer
            finally:
                timer.cancel()
        if self._items:
            items = list(self._items)
            self._items.clear()
            _wake(self._producer)
            return items
        if not self._ended:
            return []
        if self._error is not None:
            raise self._error
        return None


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
