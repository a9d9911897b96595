"""Brings a database to this program's schema, once, under a lock between processes, with a backup before. Never downwards.

Importing Alembic costs memory and time, so at start the stored revision is compared with `HEAD` first, and Alembic comes in
only when there is something to do.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from app.core.errors import Conflict, SchemaTooNew, StorageUnavailable
from app.core.settings import Settings
from app.db import backup
from app.db.connect import create_private, postgres_engine, sqlite_engine
from app.db.failures import reraise
from app.db.location import Location, locate, locate_url
from app.db.locks import FileLock, held, migrate_lock, open_lock

if TYPE_CHECKING:
    from alembic.config import Config

_log = logging.getLogger(__name__)

HEAD = "0004"
"""The newest revision in ``migrations/versions``; a test compares."""

_ADVISORY_LOCK = 4_715_310_972_001
_WAIT_S = 120.0
_SCRIPTS = Path(__file__).parent / "migrations"


def head() -> str:
    """The revision that this program works with."""
    return HEAD


def current(url: str) -> str | None:
    """The revision stored in the database at ``url`` (SQLAlchemy form), or None where it has no schema yet.

    Raises:
        StorageUnavailable: it cannot be read. ConfigurationError: no usable URL.
    """
    location = locate_url(url, backups=Path())
    if location.path is not None and not location.path.exists():
        return None
    engine = sqlite_engine(location.path, write=False) if location.path else postgres_engine(location.url, pool_size=0)
    try:
        with engine.connect() as connection:
            return stored_revision(connection)
    except Exception as error:
        reraise(error)
        raise
    finally:
        engine.dispose()


def upgrade(settings: Settings) -> str:
    """Brings the database to `head` and returns the revision it had before (empty: none). For the command line.

    Raises:
        SchemaTooNew, StorageUnavailable, ConfigurationError: as `Database.open`.
        Conflict: a migration is needed, and the service has the database open.
    """
    location = locate(settings)
    try:
        if location.path is None:
            engine = postgres_engine(location.url, pool_size=0)
            try:
                return upgrade_postgres(engine)
            finally:
                engine.dispose()
        create_private(location.path)
        lock = open_lock(location.path)
        try:
            return upgrade_sqlite(location, lock)
        finally:
            lock.release()
    except Exception as error:
        reraise(error)
        raise


def upgrade_sqlite(location: Location, lock: FileLock) -> str:
    """Migrates if needed; afterwards holds ``lock`` (the database's open lock) shared. Returns the revision before, or ""."""
    path = location.sqlite_path
    busy = StorageUnavailable(
        "Another process is migrating the database and does not finish. Look at its log, then start again."
    )
    with held(migrate_lock(path), shared=False, timeout_s=_WAIT_S, otherwise=busy):
        engine = sqlite_engine(path, write=True)
        try:
            with engine.connect() as connection:
                found = stored_revision(connection)
            if found != HEAD:
                _check_known(found)
                _alone(lock)
                if found is not None:
                    backup.before_migration(location, found)
                with engine.connect() as connection:
                    _run(connection)
                    connection.commit()
            _shared(lock)
        finally:
            engine.dispose()
    return found or ""


def upgrade_postgres(engine: Engine) -> str:
    """The same for PostgreSQL, under an advisory lock. Returns the revision before, or ""."""
    with engine.connect() as connection:
        found = stored_revision(connection)
        if found == HEAD:
            return found
        # Held by the transaction: a process that dies lets go of it.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        found = stored_revision(connection)
        if found != HEAD:
            _check_known(found)
            if found is not None:
                _log.warning(
                    "migrating PostgreSQL in one transaction; backups of it are made with pg_dump, not by this program"
                )
            _run(connection)
        connection.commit()
        return found or ""


def stored_revision(connection: Connection) -> str | None:
    """The revision in the database, or None. Raises SchemaTooNew where several are stored: we never write that."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    if len(found) > 1:
        raise _too_new(", ".join(found))
    return str(found[0]) if found else None


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made in code: there is no alembic.ini. ``connection``: where ``migrations/env.py`` runs."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def _run(connection: Connection) -> None:
    from alembic import command

    command.upgrade(config(connection), "head")
    _log.info("database migrated", extra={"data": {"revision": HEAD}})


def _check_known(found: str | None) -> None:
    """Raises SchemaTooNew for a revision that this program has never heard of."""
    if found is None:
        return
    from alembic.script import ScriptDirectory

    if found not in {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}:
        raise _too_new(found)


def _too_new(found: str) -> SchemaTooNew:
    return SchemaTooNew(
        f"The database has schema {found}; this program knows schemas up to {HEAD}. Start the newer Aprendiz that wrote it, or "
        "restore the backup that it made before its migration with `aprendiz db restore`."
    )


def _alone(lock: FileLock) -> None:
    if not lock.acquire(shared=False):
        raise Conflict(
            "The database must be migrated, and another process has it open. Stop the service first, then start this one."
        )


def _shared(lock: FileLock) -> None:
    if not lock.acquire(shared=True, timeout_s=5):
        raise Conflict("Another process is restoring this database. Wait until it has finished.")
