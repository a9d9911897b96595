"""What the stores share that keep files beside the database: what it has left behind is removed when they open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError
from app.memory.vectors.base import VectorSource
from app.memory.vectors.following import FollowingStore
from app.memory.vectors.process import StoreProcess
from app.memory.vectors.wire import collection_hash, user_hash

logger = logging.getLogger(__name__)

Sweep = Callable[[Path, Mapping[tuple[str, str], int]], Any]
"""Removes from a folder what belongs to none of these partitions (by hashes), or to another generation of them."""


class SavedStore(FollowingStore):
    """A `FollowingStore` with files of its own. ``folder``: for all partitions; ``sweep``: cleans it; the rest goes on."""

    def __init__(
        self, name: str, source: VectorSource, process: StoreProcess, *, folder: Path, sweep: Sweep, **more: Any
    ) -> None:
        super().__init__(name, source, process, **more)
        self._folder = folder
        self._remove = sweep
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
            await asyncio.to_thread(self._remove, self._folder, wanted)
        except (AprendizError, OSError) as error:
            # What is left is compared with the database before it is used; only the disk keeps it a little longer.
            logger.warning("saved indexes could not be swept", extra={"data": {"error": type(error).__name__}})
