"""Which store there is: the one that ``memory.store`` names, or what fits the database."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from app.core.errors import ConfigurationError, Unavailable
from app.core.settings import Settings
from app.db.database import Database
from app.memory.vectors.base import Hit, Partition, VectorSource, VectorStore
from app.memory.vectors.faiss import FOLDER, FaissStore


def make_store(settings: Settings, source: VectorSource, database: Database) -> VectorStore:
    """The store, not yet open."""
    chosen = settings.memory.store
    if chosen in ("auto", "faiss"):
        if importlib.util.find_spec("faiss") is None:
            return NoStore("Search by vectors needs the extra: pip install 'aprendiz[memory]'.", asked=chosen == "faiss")
        return FaissStore(source, settings.data_dir / FOLDER)
    raise ConfigurationError(f"memory.store: {chosen} is not supported yet.")


class NoStore:
    """Where what a store needs is not installed. ``asked``: an operator named the store, so it fails at start."""

    def __init__(self, detail: str, *, asked: bool) -> None:
        self.name = "none"
        self._detail, self._asked = detail, asked

    async def open(self) -> None:
        """Raises ConfigurationError where somebody asked for the store."""
        if self._asked:
            raise ConfigurationError(self._detail)

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """Raises Unavailable: search goes by words alone."""
        raise Unavailable(self._detail)

    async def refresh(self, partition: Partition) -> None:
        """There is nothing to bring up to date."""

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """There is nothing to drop."""

    def status(self) -> Mapping[str, Any]:
        """See `VectorStore.status`."""
        return {"store": self.name, "state": "missing", "error": self._detail}

    async def aclose(self) -> None:
        """See `VectorStore.aclose`."""
