"""The one thread that writes to SQLite: takes everything that is queued, commits once, then acknowledges.

A commit costs an fsync (milliseconds), a row microseconds; so many callers share one commit. Nothing is acknowledged before the
commit that holds it. After an I/O error the kernel may have dropped what a later fsync would claim to have written, so the
writer never writes again in this process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import Overloaded, ShuttingDown, StorageUnavailable
from app.core.metrics import Metrics
from app.db.failures import Failure, failure_of
from app.db.insert import insert_rows

_log = logging.getLogger(__name__)

_MAX_QUEUED = 4096
_MAX_BATCH = 512
_CHECKPOINT_TASKS = 1000
_CHECKPOINT_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Append:
    table: Table
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Alone:
    """Works on the raw connection, outside any transaction, while nothing else is written."""

    work: Callable[[Any], None]


@dataclass(slots=True, eq=False)
class _Task:
    work: Callable[[Connection], Any] | _Append | _Alone
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


class _BatchFailed(Exception):
    """The storage failed under the batch: none of it counts."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Writer:
    """Group commit over one connection of ``engine``. `submit` from event loops, all else in the thread."""

    def __init__(self, engine: Engine, path: Path, metrics: Metrics | None) -> None:
        self._engine = engine
        self._wal = path.with_name(path.name + "-wal")
        self._metrics = metrics
        self._queue: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._poison: str | None = None
        self._since_checkpoint = 0
        self._connection: Connection | None = None
        # A daemon, so that a process whose start failed half-way can end; what was acknowledged is on the disk.
        self._thread = threading.Thread(target=self._run, name="db-writer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def unavailable(self) -> str | None:
        """Why it refuses to write, or None."""
        return self._poison

    def submit(
        self,
        work: Callable[[Connection], Any] | None = None,
        *,
        table: Table | None = None,
        row: Any = None,
        alone: Callable[[Any], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Queues a function, or a ``row`` for ``table``. The future resolves after the commit.

        ``alone``: in their place, what works on the raw connection outside any transaction.

        Raises:
            StorageUnavailable: an earlier I/O error. ShuttingDown: it is closing. Overloaded: the queue is full.
        """
        loop = asyncio.get_running_loop()
        item = _Append(table, row) if table is not None else _Alone(alone) if alone is not None else work
        assert item is not None, "a function or a table"  # noqa: S101 - a programmer's mistake
        task = _Task(item, loop, loop.create_future())
        with self._wake:
            if self._poison is not None:
                raise StorageUnavailable(self._poison)
            if self._closing:
                raise ShuttingDown("The service is shutting down; send it again to its successor.", retry_after=5)
            if len(self._queue) >= _MAX_QUEUED:
                raise Overloaded("Too many writes are waiting for the disk. Try again in a moment.", retry_after=1)
            self._queue.append(task)
            self._wake.notify()
        return task.future

    def close(self) -> None:
        """Writes what is queued and ends the thread. Blocks. `disconnect` comes later, when no reader is left."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            live = [task for task in batch if not task.future.cancelled()]
            if live and isinstance(live[0].work, _Alone):
                self._run_alone(live[0], live[0].work.work)
            elif live:
                self._commit(live)
            _acknowledge(live)
            self._maybe_checkpoint(len(live))

    def _take(self) -> list[_Task]:
        """The next batch; empty when closing and nothing is left."""
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            batch: list[_Task] = []
            while self._queue and len(batch) < _MAX_BATCH:
                if isinstance(self._queue[0].work, _Alone) and batch:
                    break
                batch.append(self._queue.popleft())
                if isinstance(batch[-1].work, _Alone):
                    break
            return batch

    def _commit(self, batch: list[_Task]) -> None:
        """One transaction around the batch; afterwards each task has its value or error, and holds only if the commit did."""
        started = time.monotonic()
        try:
            if self._poison is not None:
                raise _BatchFailed(Failure(StorageUnavailable(self._poison)))
            self._transaction(batch)
        except _BatchFailed as failed:
            self._fail(batch, failed.failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, callers must hear of it and the thread must live
            self._fail(batch, failure_of(error) or _unknown(error))
        else:
            if self._metrics is not None:
                self._metrics.db_commit_seconds.observe(time.monotonic() - started)
                self._metrics.db_batch_rows.observe(len(batch))

    def _run_alone(self, task: _Task, work: Callable[[Any], None]) -> None:
        try:
            if self._poison is not None:
                raise StorageUnavailable(self._poison)
            raw = self._connected().connection.dbapi_connection
            work(raw)
        except StorageUnavailable as error:
            task.error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it and the thread must live
            self._fail([task], failure_of(error) or _unknown(error))

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _transaction(self, batch: list[_Task]) -> None:
        connection = self._connected()
        if _append_at_once(connection, batch):
            return
        # Not as a context manager: an error of its rollback would hide the first. A failed batch drops the connection instead.
        transaction = connection.begin()
        for task in batch:
            if not isinstance(task.work, _Append):
                _in_savepoint(connection, task)
        for rows in _by_shape(batch):
            _insert(connection, rows)
        transaction.commit()

    def _fail(self, batch: list[_Task], failure: Failure) -> None:
        for task in batch:
            task.value, task.error = None, failure.error.again()
        self.disconnect()
        _log.error("a commit failed", extra={"data": {"tasks": len(batch), "reason": failure.error.detail}})
        if failure.lasting and self._poison is None:
            self._poison_with(failure.error.detail)

    def _poison_with(self, reason: str) -> None:
        with self._wake:
            self._poison = reason
        _log.critical("the database writer has stopped", extra={"data": {"reason": reason}})

    def disconnect(self) -> None:
        """Drops the connection with whatever state it is in; the next batch would get a new one.

        The last writing connection to close moves the log into the file. After an I/O error it must not, and does not: readers
        are still there then.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.invalidate()
            connection.close()
        except SQLAlchemyError as error:
            _log.warning("closing the database connection failed", extra={"data": {"error": type(error).__name__}})

    def _maybe_checkpoint(self, tasks: int) -> None:
        """Moves the write-ahead log into the database file now and then, after the acknowledgements.

        We do it, because SQLite's own automatic checkpoint keeps an fsync error to itself.
        """
        self._since_checkpoint += tasks
        if self._poison is not None or self._connection is None:
            return
        if self._since_checkpoint < _CHECKPOINT_TASKS and not self._wal_is_long():
            return
        self._since_checkpoint = 0
        try:
            raw = self._connection.connection.dbapi_connection
            assert raw is not None  # noqa: S101 - the connection is open
            raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)").close()
        except Exception as error:  # noqa: BLE001 - the thread must live; a lasting failure poisons it
            failure = failure_of(error)
            _log.error("moving the write-ahead log failed", extra={"data": {"error": type(error).__name__}})
            if failure is not None and failure.lasting:
                self._poison_with(failure.error.detail)

    def _wal_is_long(self) -> bool:
        try:
            return self._wal.stat().st_size > _CHECKPOINT_BYTES
        except OSError:
            return False  # no log, nothing to move


def _append_at_once(connection: Connection, batch: list[_Task]) -> bool:
    """The usual batch, rows and nothing else, without savepoints. False: it is another, or a row is bad; nothing is written."""
    if not all(isinstance(task.work, _Append) for task in batch):
        return False
    transaction = connection.begin()
    try:
        for tasks in _by_shape(batch):
            appends = [task.work for task in tasks if isinstance(task.work, _Append)]
            insert_rows(connection, appends[0].table, [append.row for append in appends])
    except Exception as error:
        failure = failure_of(error)
        if failure is not None:
            raise _BatchFailed(failure) from error
        transaction.rollback()  # which row it is, is found out one by one, in savepoints
        return False
    transaction.commit()
    return True


def _in_savepoint(connection: Connection, task: _Task) -> None:
    """Runs one task so that its failure leaves the others alone. Raises _BatchFailed where the storage itself failed."""
    work = task.work
    savepoint = connection.begin_nested()
    try:
        if isinstance(work, _Append):
            connection.execute(work.table.insert(), [dict(work.row)])
        elif not isinstance(work, _Alone):  # those never come here
            task.value = work(connection)
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it
        _check(connection, error)
        savepoint.rollback()
        task.value, task.error = None, error
    else:
        savepoint.commit()


def _insert(connection: Connection, tasks: list[_Task]) -> None:
    """All rows of one table and shape in one ``executemany``; if one of them is bad, each by itself."""
    rows = [task.work.row for task in tasks if isinstance(task.work, _Append)]
    table = next(task.work.table for task in tasks if isinstance(task.work, _Append))
    savepoint = connection.begin_nested()
    try:
        connection.execute(table.insert(), rows)
    except Exception as error:  # noqa: BLE001 - found out one by one
        _check(connection, error)
        savepoint.rollback()
        for task in tasks:
            _in_savepoint(connection, task)
    else:
        savepoint.commit()


def _check(connection: Connection, error: Exception) -> None:
    failure = failure_of(error)
    if failure is not None:
        raise _BatchFailed(failure) from error
    raw = connection.connection.dbapi_connection
    if raw is None or not raw.in_transaction:  # SQLite rolled the whole transaction back
        raise _BatchFailed(_unknown(error)) from error


def _by_shape(tasks: Iterable[_Task]) -> Iterable[list[_Task]]:
    groups: dict[tuple[Any, ...], list[_Task]] = {}
    for task in tasks:
        if isinstance(task.work, _Append):
            groups.setdefault((task.work.table.name, *task.work.row), []).append(task)
    return groups.values()


def _unknown(error: BaseException) -> Failure:
    _log.error("an unexpected database error", exc_info=error)
    return Failure(
        StorageUnavailable("The database refused the write. Try again; the log of the service says more.", retry_after=1)
    )


def _acknowledge(batch: list[_Task]) -> None:
    """Wakes each event loop once for all its tasks."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Task]] = {}
    for task in batch:
        by_loop.setdefault(task.loop, []).append(task)
    for loop, tasks in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, tasks)
        except RuntimeError:
            _log.warning("an event loop ended before its writes were acknowledged", extra={"data": {"tasks": len(tasks)}})


def _settle(tasks: list[_Task]) -> None:
    for task in tasks:
        if task.future.done():  # its caller was cancelled meanwhile
            continue
        if task.error is not None:
            task.future.set_exception(task.error)
        else:
            task.future.set_result(task.value)
