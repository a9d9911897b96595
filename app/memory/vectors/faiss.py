"""FAISS in a child process: the default store. It needs no server, and its files only make a start faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.memory.vectors.base import VectorSource
from app.memory.vectors.layout import sweep
from app.memory.vectors.process import StoreProcess
from app.memory.vectors.saved import SavedStore


class FaissStore(SavedStore):
    """See `SavedStore`.

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
        super().__init__("faiss", source, StoreProcess(config, silent_s=silent_s), folder=folder, sweep=sweep)
