"""FAISS in a child process: the default store. It needs no server, and its files only make a start faster."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError
from app.memory.vectors.base import VectorSource
from app.memory.vectors.following import FollowingStore
from app.memory.vectors.layout import sweep
from app.memory.vectors.process import StoreProcess
from app.memory.vectors.wire import collection_hash, user_hash

logger = logging.getLogger(__name__)


class FaissStore(FollowingStore):
    """See `FollowingStore`.

    Args:
        folder: for the files, made when the first is written.
        memory_bytes: bound of the partitions in memory.
        quiet_s: how long a partition must have stayed as it is before it is saved.
        silent_s: see `StoreProcess`.
    """

    def __init__(
        self, source: VectorSource, folder: Path, *, memory_bytes: int = 1 << 30, quiet_s: float = 5, silent_s: float = 30
    ) -> None:
        config: dict[str, Any] = {"backend": "faiss", "folder": str(folder), "bytes": memory_bytes, "quiet_s": quiet_s}
        super().__init__("faiss", source, StoreProcess(config, silent_s=silent_s))
        self._folder = folder
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `VectorStore.open`. Beside the start, files that the database has left behind are removed."""
        self._sweeping = asyncio.create_task(self._sweep(), name="vectors sweep")

    async def aclose(self) -> None:
        """See `VectorStore.aclose`."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await super().aclose()

    async def _sweep(self) -> None:
        """A deletion just before a crash, or a database restored from a backup: what is saved may hold what is deleted."""
        try:
            found = await self._source.generations()
            wanted = {(user_hash(user), collection_hash(collection)): number for (user, collection), number in found.items()}
            await asyncio.to_thread(sweep, self._folder, wanted)
        except (AprendizError, OSError) as error:
            # What is left is compared with the database before it is used; only the disk keeps it a little longer.
            logger.warning("saved indexes could not be swept", extra={"data": {"error": type(error).__name__}})
