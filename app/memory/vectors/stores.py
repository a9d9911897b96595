"""Which store there is: the one that ``memory.store`` names, or what fits the database."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from app.core.addresses import server_address
from app.core.errors import ConfigurationError, Unavailable
from app.core.settings import Settings
from app.db.database import Database
from app.db.location import locate
from app.memory.vectors.base import Hit, Partition, VectorSource, VectorStore
from app.memory.vectors.chroma import ChromaServerStore, ChromaStore
from app.memory.vectors.faiss import FaissStore
from app.memory.vectors.pgvector import PgVectorStore

FOLDER = "vectors"

logger = logging.getLogger(__name__)


def make_store(settings: Settings, source: VectorSource, database: Database) -> VectorStore:
    """The store, not yet open.

    Raises ConfigurationError where ``memory.store`` names one that is not installed or cannot be with this database.
    """
    chosen, folder = settings.memory.store, settings.data_dir / FOLDER
    location = locate(settings)
    if chosen == "auto":
        embedded = _faiss(source, settings) if _installed("faiss") else NoStore(_missing("memory"))
        return embedded if location.path is not None else AutoStore(PgVectorStore(source, database, location.url), embedded)
    if chosen == "pgvector":
        if location.path is not None:
            raise ConfigurationError("memory.store: pgvector needs a PostgreSQL database; the database here is SQLite.")
        return PgVectorStore(source, database, location.url)
    package, extra = ("faiss", "memory") if chosen == "faiss" else ("chromadb", "chroma")
    if not _installed(package):
        raise ConfigurationError(f"memory.store: {_missing(extra)}")
    if chosen == "faiss":
        return _faiss(source, settings)
    if chosen == "chroma":
        return ChromaStore(source, folder / "chroma")
    return ChromaServerStore(source, server_address("memory.store", chosen))


def _faiss(source: VectorSource, settings: Settings) -> FaissStore:
    return FaissStore(source, settings.data_dir / FOLDER / "faiss")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _missing(extra: str) -> str:
    return f"search by vectors needs an extra: pip install 'aprendiz[{extra}]'."


class AutoStore:
    """pgvector where the PostgreSQL server has it, else what works beside any database."""

    def __init__(self, first: PgVectorStore, second: VectorStore) -> None:
        self._first, self._second = first, second
        self._chosen: VectorStore = second
        self.name = second.name
        """Of the chosen one."""

    async def open(self) -> None:
        """Chooses. Never raises for want of pgvector: nobody asked for it."""
        try:
            await self._first.open()
            self._chosen, self.name = self._first, self._first.name
        except ConfigurationError as error:
            logger.warning("vectors are searched by %s", self._second.name, extra={"data": {"reason": error.detail}})
            await self._second.open()

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """See `VectorStore.search`."""
        return await self._chosen.search(partition, vector, k)

    async def refresh(self, partition: Partition) -> None:
        """See `VectorStore.refresh`."""
        await self._chosen.refresh(partition)

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """See `VectorStore.forget`."""
        await self._chosen.forget(user_id, collection)

    def status(self) -> Mapping[str, Any]:
        """See `VectorStore.status`."""
        return self._chosen.status()

    async def aclose(self) -> None:
        """See `VectorStore.aclose`."""
        await self._chosen.aclose()


class NoStore:
    """Where nobody asked for a store and what the default needs is not installed: search goes by words alone."""

    name = "none"

    def __init__(self, detail: str) -> None:
        self._detail = detail[0].upper() + detail[1:]

    async def open(self) -> None:
        """There is nothing to open."""

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """Raises Unavailable, which says what to install."""
        raise Unavailable(self._detail)

    async def refresh(self, partition: Partition) -> None:
        """There is nothing to bring up to date."""

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """There is nothing to drop."""

    def status(self) -> Mapping[str, Any]:
        """See `VectorStore.status`."""
        return {"store": self.name, "state": "missing", "error": self._detail}

    async def aclose(self) -> None:
        """There is nothing to end."""
