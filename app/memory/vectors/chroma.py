"""Chroma, embedded in a child process or as a server of its own.

Embedded, each partition has a folder to itself: Chroma keeps deleted vectors in its files, so after a deletion the folder is
thrown away and filled again from the database. On a server each partition is one collection; its disk is its operator's.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from app.core.addresses import Address
from app.core.errors import AprendizError
from app.memory.vectors.base import VectorSource
from app.memory.vectors.following import FollowingStore
from app.memory.vectors.layout import sweep_folders
from app.memory.vectors.process import StoreProcess
from app.memory.vectors.wire import collection_hash, user_hash

_SEARCH_S = 20.0
_STEP_S = 120.0

logger = logging.getLogger(__name__)


class ChromaStore(FollowingStore):
    """Embedded. ``folder``: for all partitions."""

    def __init__(self, source: VectorSource, folder: Path) -> None:
        process = StoreProcess({"backend": "chroma", "folder": str(folder)}, silent_s=_STEP_S)
        super().__init__("chroma", source, process, search_s=_SEARCH_S, step_s=_STEP_S)
        self._folder = folder
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `VectorStore.open`. Beside the start, folders that the database has left behind are removed."""
        self._sweeping = asyncio.create_task(self._sweep(), name="vectors sweep")

    async def aclose(self) -> None:
        """See `VectorStore.aclose`."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await super().aclose()

    async def _ready(self) -> None:
        # A folder must not be removed under a client that has it open.
        if self._sweeping is not None:
            await asyncio.wait({self._sweeping})

    async def _sweep(self) -> None:
        try:
            found = await self._source.generations()
            wanted = {(user_hash(user), collection_hash(collection)): number for (user, collection), number in found.items()}
            await asyncio.to_thread(sweep_folders, self._folder, wanted)
        except (AprendizError, OSError) as error:
            logger.warning("saved indexes could not be swept", extra={"data": {"error": type(error).__name__}})


class ChromaServerStore(FollowingStore):
    """A Chroma server. Its client, too, runs in a child: it is a large library, and waits without a deadline."""

    def __init__(self, source: VectorSource, address: Address, *, silent_s: float = 30) -> None:
        config: dict[str, Any] = {
            "backend": "chroma",
            "host": address.host,
            "port": address.port,
            "tls": address.scheme == "https",
        }
        super().__init__("chroma server", source, StoreProcess(config, silent_s=silent_s), search_s=_SEARCH_S, step_s=60)
