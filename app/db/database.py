"""`Database`: runs functions on a SQLAlchemy connection, durably. The one seam between repositories and SQLite or PostgreSQL.

It knows no table and no query. Repositories hand it functions; nothing else touches a connection.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, text

from app.core.errors import ShuttingDown, StorageUnavailable
from app.core.metrics import Metrics
from app.core.settings import Settings
from app.db.location import locate

T = TypeVar("T")


class Database(abc.ABC):
    """One open database. Its methods belong to an event loop; the functions given to them run in threads.

    A function must use only the connection it is given, must not commit, and may be run more than once (PostgreSQL asks for a
    transaction again after a conflict), so it changes nothing outside the database.
    """

    @abc.abstractmethod
    async def open(self) -> None:
        """Connects and migrates, under a lock between processes and with a backup before.

        Raises:
            SchemaTooNew: a newer Aprendiz wrote this database.
            StorageUnavailable: it cannot be reached, read or written.
            ConfigurationError: the settings name no usable database.
        """

    @abc.abstractmethod
    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Runs ``fn`` in a read-only transaction on one snapshot. Raises what ``fn`` raises, StorageUnavailable."""

    @abc.abstractmethod
    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Runs ``fn`` in one transaction; durable when this returns. Raises what ``fn`` raises, StorageUnavailable."""

    @abc.abstractmethod
    async def append(self, table: Table, row: Mapping[str, Any]) -> None:
        """Inserts one row, batched with others; durable when this returns. Raises IntegrityError, and as `write`."""

    @abc.abstractmethod
    async def compact(self) -> None:
        """Rewrites the files so that nothing of what was deleted is left in them; writes wait meanwhile, reads do not.

        SQLite: the whole file, and its log is emptied. PostgreSQL: VACUUM; its log, replicas and backups are its operator's.

        Raises StorageUnavailable, StorageFull: not done; what was deleted stays deleted, and may be read from the raw files.
        """

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Why writes are refused (after an I/O error: until restart), in words for an operator, or None."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Finishes the writes that are queued, then closes. May be called twice."""

    async def ping(self) -> None:
        """Raises StorageUnavailable unless a read works and writes are not refused."""
        reason = self.unavailable()
        if reason is not None:
            raise StorageUnavailable(reason)
        await self.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())


def closed() -> ShuttingDown:
    """What a database raises that is not open."""
    return ShuttingDown("The database is closed: the service is starting or shutting down.", retry_after=5)


def open_database(settings: Settings, metrics: Metrics | None = None) -> Database:
    """The database that ``settings.database.url`` names, not yet open: SQLite or PostgreSQL. Raises ConfigurationError."""
    location = locate(settings)
    # Imported here because each of the two builds on this module, and so that a SQLite service never loads the other's code.
    if location.path is not None:
        from app.db.sqlite import SqliteDatabase

        return SqliteDatabase(location, metrics)
    from app.db.postgres import PostgresDatabase

    return PostgresDatabase(location, metrics)
