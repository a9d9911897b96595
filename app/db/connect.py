"""SQLAlchemy engines for both databases, with the connection settings that durability depends on. Runs no query of ours.

Python's ``sqlite3`` begins transactions by itself unless ``isolation_level`` is None; we set that and say BEGIN ourselves, so
that a writer begins IMMEDIATE, DDL is transactional, and savepoints work.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool, QueuePool

from app.core.errors import ConfigurationError, StorageUnavailable

BUSY_TIMEOUT_S = 5.0
_WAL_LIMIT_BYTES = 4 * 1024 * 1024
_STATEMENT_CACHE = 256
_MEMORY_BYTES = 256 * 1024 * 1024
"""Up to this size a database is rewritten in memory."""
_CHECKPOINT_PAUSE_S = 0.05


def connect_sqlite(path: Path, *, write: bool) -> sqlite3.Connection:
    """One connection in manual transaction mode. Raises sqlite3.Error.

    A reader opens the file read-only, so that its closing, too, can never move the log into a file on a failing disk.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENT_CACHE,
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        # No temporary files: a full /tmp must not fail a savepoint.
        connection.execute("PRAGMA temp_store=MEMORY")
        if write:
            _prepare_writer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare_writer(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise ConfigurationError("The data directory is on a file system where SQLite cannot work safely; use a local disk.")
    connection.execute("PRAGMA synchronous=FULL")
    # SQLite ignores errors of the checkpoints that it makes by itself; ours are seen (`app.db.writer`).
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT_BYTES}")
    # What a person erased must not stay readable in free pages.
    connection.execute("PRAGMA secure_delete=ON")


def compact(connection: sqlite3.Connection) -> None:
    """Writes the whole file anew and empties its log: ``secure_delete`` zeroes what is deleted, but leaves copies that pages
    kept when they were rebalanced. Raises sqlite3.Error; StorageUnavailable where readers hold the log for too long."""
    size = math.prod(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if size > _MEMORY_BYTES:
        connection.execute("PRAGMA temp_store=FILE")
    try:
        # The index of words only marks what was deleted, until its parts are merged.
        connection.execute("INSERT INTO chunk_words(chunk_words) VALUES ('optimize')")
        connection.execute("VACUUM")
    finally:
        connection.execute("PRAGMA temp_store=MEMORY")
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            raise StorageUnavailable("Readers hold the write-ahead log, so it could not be emptied. Try again.", retry_after=2)
        time.sleep(_CHECKPOINT_PAUSE_S)


def sqlite_engine(path: Path, *, write: bool, pool_size: int = 1) -> Engine:
    """An engine over `connect_sqlite`: writers begin IMMEDIATE, readers see one snapshot per transaction.

    Its errors, which may end in the log, name no parameters: these are prompts and hashes.
    """
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect_sqlite(path, write=write),
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,
    )
    begin = "BEGIN IMMEDIATE" if write else "BEGIN"

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def create_private(path: Path) -> None:
    """Makes an empty database file that only its owner can read, unless there is one. Raises OSError.

    It never opens a file that exists: closing any handle of it would drop the locks that SQLite holds in this process.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return  # another process was first


def postgres_engine(url: URL, *, pool_size: int) -> Engine:
    """An engine with a pool of ``pool_size`` connections (0: none is kept). Connects on first use.

    Raises:
        ConfigurationError: the driver is not installed.
    """
    arguments = {"connect_timeout": 2, "application_name": "aprendiz", "client_encoding": "utf8", **url.query}
    try:
        if pool_size == 0:
            return create_engine(url, connect_args=arguments, poolclass=NullPool, hide_parameters=True)
        return create_engine(
            url,
            connect_args=arguments,
            pool_size=pool_size,
            max_overflow=0,
            pool_pre_ping=True,
            pool_timeout=5,
            hide_parameters=True,
        )
    except ModuleNotFoundError:
        raise ConfigurationError("PostgreSQL needs its driver: pip install 'aprendiz[postgres]'.") from None
