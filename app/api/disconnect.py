"""Work that ends when its client leaves: answered in whole or streamed, waiting in a queue or running.

ASGI tells of a client's end by ``http.disconnect`` and nothing else; without someone who listens, a server works on for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive


@contextlib.asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block at once when the client leaves; the block then raises ClientDisconnect.

    The request's body must have been read before: what comes on ``receive`` now is only the end.
    """
    worker = asyncio.current_task()
    assert worker is not None  # noqa: S101  # a coroutine always runs in a task
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)  # the client may leave here, too
    except asyncio.CancelledError:
        if gone and worker.uncancel() == 0:
            raise ClientDisconnect from None
        raise  # the server cancels too, at shutdown
