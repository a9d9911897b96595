"""Chroma, embedded in a child process or as a server of its own.

Embedded, each partition has a folder to itself: Chroma keeps deleted vectors in its files, so after a deletion the folder is
thrown away and filled again from the database. On a server each partition is one collection; its disk is its operator's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from app.core.addresses import Address
from app.memory.vectors.base import VectorSource
from app.memory.vectors.following import FollowingStore
from app.memory.vectors.layout import sweep_folders
from app.memory.vectors.process import StoreProcess
from app.memory.vectors.saved import SavedStore

_SEARCH_S = 20.0
_STEP_S = 120.0


class ChromaStore(SavedStore):
    """Embedded. ``folder``: for all partitions."""

    def __init__(self, source: VectorSource, folder: Path) -> None:
        process = StoreProcess({"backend": "chroma", "folder": str(folder)}, silent_s=_STEP_S)
        super().__init__("chroma", source, process, folder=folder, sweep=sweep_folders, search_s=_SEARCH_S, step_s=_STEP_S)

    async def _ready(self) -> None:
        # A folder must not be removed under a client that has it open.
        if self._sweeping is not None:
            await asyncio.wait({self._sweeping})


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
