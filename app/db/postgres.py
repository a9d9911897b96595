"""The PostgreSQL side of `Database`: a pool of connections in threads, serializable writes with retries. No queries.

The server groups commits by itself. Writes run SERIALIZABLE, so that "look, then write" in a repository is as safe here as
behind SQLite's one writer; a lost race comes back as a serialization failure and runs again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from sqlalchemy import Connection, Engine, Table, text
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import ConfigurationError, StorageUnavailable
from app.core.metrics import Metrics
from app.db import migrate
from app.db.connect import postgres_engine
from app.db.database import Database, T, closed
from app.db.failures import may_retry, reraise
from app.db.location import Location

_CONNECTIONS = 8
_DEADLINE_S = 5.0
_RETRY_S = 4.0
_SLOW = "The database server does not answer in time. Try again in a moment; the write may have been stored."


class PostgresDatabase(Database):
    """A PostgreSQL database with UTF-8 encoding."""

    def __init__(self, location: Location, metrics: Metrics | None = None) -> None:
        self._location = location
        self._metrics = metrics
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._turns = threading.Lock()

    async def open(self) -> None:
        if self._engine is None:
            await asyncio.to_thread(self._open)

    def _open(self) -> None:
        engine = postgres_engine(self._location.url, pool_size=_CONNECTIONS)
        try:
            with engine.connect() as connection:
                encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
            if encoding != "UTF8":
                raise ConfigurationError(f"The PostgreSQL database must have the encoding UTF8; this one has {encoding}.")
            migrate.upgrade_postgres(engine)
        except BaseException as error:
            engine.dispose()
            reraise(error)
            raise
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="db-postgres")
        self._engine = engine

    async def read(self, fn: Callable[[Connection], T]) -> T:
        return await self._run(_read, fn)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        return await self._run(self._write, fn)

    async def append(self, table: Table, row: Mapping[str, Any]) -> None:
        values = dict(row)
        # One insert looks at nothing first, so it needs no more than READ COMMITTED.
        await self._run(_append, lambda connection: connection.execute(table.insert(), [values]))

    async def compact(self) -> None:
        if self._engine is None or self._threads is None:
            raise closed()
        await asyncio.get_running_loop().run_in_executor(self._threads, _translated, _vacuum, self._engine, _nothing)

    def unavailable(self) -> str | None:
        return "The database is not open." if self._engine is None else None

    async def aclose(self) -> None:
        engine, threads = self._engine, self._threads
        if engine is None or threads is None:
            return
        self._engine = self._threads = None
        await asyncio.to_thread(threads.shutdown)
        engine.dispose()

    async def _run(self, how: Callable[[Engine, Callable[[Connection], T]], T], fn: Callable[[Connection], T]) -> T:
        if self._engine is None or self._threads is None:
            raise closed()
        running = asyncio.get_running_loop().run_in_executor(self._threads, _translated, how, self._engine, fn)
        try:
            # A server that hangs holds its thread, never its callers.
            async with asyncio.timeout(_DEADLINE_S):
                return await running
        except TimeoutError:
            raise StorageUnavailable(_SLOW, retry_after=2) from None

    def _write(self, engine: Engine, fn: Callable[[Connection], T]) -> T:
        serializable = engine.execution_options(isolation_level="SERIALIZABLE")
        give_up = time.monotonic() + _RETRY_S
        for attempt in itertools.count(1):
            started = time.monotonic()
            # Who lost a race, and whoever comes while there is one, takes turns: else many writers of one row could all lose.
            turns = self._turns if attempt > 1 or self._turns.locked() else nullcontext()
            try:
                with turns, serializable.connect() as connection, connection.begin():
                    result = fn(connection)
            except SQLAlchemyError as error:
                if started > give_up or not may_retry(error, attempt):
                    raise
                # Other processes do not see our turns; a little chance keeps them out of step.
                time.sleep(random.uniform(0, 0.01))  # noqa: S311 - jitter, not a secret
            else:
                self._observe(time.monotonic() - started)
                return result
        raise AssertionError("unreachable")

    def _observe(self, seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.db_commit_seconds.observe(seconds)
            self._metrics.db_batch_rows.observe(1)


def _read(engine: Engine, fn: Callable[[Connection], T]) -> T:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.connect() as connection, connection.begin():
        return fn(connection)


def _append(engine: Engine, fn: Callable[[Connection], T]) -> T:
    with engine.execution_options(isolation_level="READ COMMITTED").connect() as connection, connection.begin():
        return fn(connection)


def _vacuum(engine: Engine, _fn: Callable[[Connection], None]) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM"))


def _nothing(_connection: Connection) -> None:
    pass


def _translated(how: Callable[[Engine, Callable[[Connection], T]], T], engine: Engine, fn: Callable[[Connection], T]) -> T:
    try:
        return how(engine, fn)
    except Exception as error:
        reraise(error)
        raise
