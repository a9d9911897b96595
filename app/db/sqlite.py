"""The SQLite side of `Database` (M1's ``sqlite.py``): one writer thread with group commit, a few reading threads.

No queries, except `store_feedback`, M1's name for the way in of a feedback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table

from app.core.metrics import Metrics
from app.core.records import FeedbackRecord
from app.db import migrate
from app.db.connect import compact, create_private, sqlite_engine
from app.db.database import Database, T, closed
from app.db.failures import reraise
from app.db.feedback import Feedback
from app.db.location import Location
from app.db.locks import FileLock, open_lock
from app.db.writer import Writer

_READERS = 4


class SqliteDatabase(Database):
    """A file in WAL mode with ``synchronous=FULL``; see `app.db.writer` for how it is written."""

    def __init__(self, location: Location, metrics: Metrics | None = None) -> None:
        self._location = location
        self._path: Path = location.sqlite_path
        self._metrics = metrics
        self._lock: FileLock | None = None
        self._readers: Engine | None = None
        self._write_engine: Engine | None = None
        self._writer: Writer | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        if self._writer is not None:
            return
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        try:
            create_private(self._path)
            self._lock = open_lock(self._path)
            migrate.upgrade_sqlite(self._location, self._lock)
            self._write_engine = sqlite_engine(self._path, write=True)
            self._write_engine.raw_connection().close()  # kept in its pool; the last to close, it tidies the log away
            self._readers = sqlite_engine(self._path, write=False, pool_size=_READERS)
            # The pool keeps it: while a reader holds the file, a writer that drops its connection after an error moves no log.
            _read(
                self._readers, lambda connection: connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one()
            )
        except BaseException as error:
            self._release()
            reraise(error)
            raise
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="db-reader")
        self._writer = Writer(self._write_engine, self._path, self._metrics)
        self._writer.start()

    async def read(self, fn: Callable[[Connection], T]) -> T:
        threads, readers = self._threads, self._readers
        if threads is None or readers is None:
            raise closed()
        return await asyncio.get_running_loop().run_in_executor(threads, _read, readers, fn)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        result: T = await self._open_writer().submit(fn)
        return result

    async def append(self, table: Table, row: Mapping[str, Any]) -> None:
        await self._open_writer().submit(table=table, row=row)

    async def compact(self) -> None:
        await self._open_writer().submit(alone=compact)

    def unavailable(self) -> str | None:
        return "The database is not open." if self._writer is None else self._writer.unavailable()

    async def aclose(self) -> None:
        writer, threads = self._writer, self._threads
        if writer is None or threads is None:
            return
        await asyncio.to_thread(writer.close)
        await asyncio.to_thread(threads.shutdown)
        self._writer = self._threads = None
        if self._readers is not None:
            self._readers.dispose()
        await asyncio.to_thread(writer.disconnect)
        self._release()

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise closed()
        return self._writer

    def _release(self) -> None:
        for engine in (self._readers, self._write_engine):
            if engine is not None:
                engine.dispose()
        self._readers = self._write_engine = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _read(readers: Engine, fn: Callable[[Connection], T]) -> T:
    try:
        with readers.connect() as connection, connection.begin():
            return fn(connection)
    except Exception as error:
        reraise(error)
        raise


async def store_feedback(database: Database, feedback: FeedbackRecord) -> tuple[FeedbackRecord, bool]:
    """Stores one feedback; see `app.db.feedback.Feedback.store`."""
    return await Feedback(database).store(feedback)
