"""What a database driver's error means: the caller's data, a full disk, a lost server, or a disk that can no longer be trusted.

The one place that knows error codes. It maps to types of `app.core.errors`; whatever is about the data alone (a broken
constraint, say) is not ours to translate and passes unchanged.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from app.core.errors import StorageFull, StorageUnavailable

_log = logging.getLogger(__name__)

DISK_ERROR = (
    "The disk reported an error, so nothing more is written until the service is restarted. Everything acknowledged before is "
    "safe. Check the disk and the system log first."
)
DAMAGED = (
    "The database file is damaged, so nothing more is written to it. Stop the service and restore the newest good backup with "
    "`aprendiz db restore`."
)
_FULL = "There is no space left for the database. Reading goes on; free some space and send it again."
_BUSY = "The database is locked by other writers. Try again in a moment."
_READ_ONLY = "The database cannot be written: the file or its disk is read-only. Make it writable and send it again."
_NO_MEMORY = "There was not enough memory for the database. Try again in a moment."
_CANNOT_OPEN = "The database file cannot be opened. Check that the data directory is there and writable."
_LOST = "The database server does not answer. Try again in a moment."


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of the storage, not of the data. ``lasting``: the writer must not go on in this process."""

    error: StorageUnavailable
    lasting: bool = False


# Extended codes that the primary code would put into the wrong class.
_SQLITE_EXTENDED = {
    sqlite3.SQLITE_IOERR_NOMEM: Failure(StorageUnavailable(_NO_MEMORY, retry_after=1)),
    # The shared-memory file of the WAL could not grow: no page was lost, there is no space for it.
    sqlite3.SQLITE_IOERR_SHMSIZE: Failure(StorageFull(_FULL, retry_after=30)),
    # It was never locked, so it was never written.
    sqlite3.SQLITE_IOERR_LOCK: Failure(StorageUnavailable(_BUSY, retry_after=1)),
}
_SQLITE = {
    sqlite3.SQLITE_IOERR: Failure(StorageUnavailable(DISK_ERROR), lasting=True),
    sqlite3.SQLITE_CORRUPT: Failure(StorageUnavailable(DAMAGED), lasting=True),
    sqlite3.SQLITE_NOTADB: Failure(StorageUnavailable(DAMAGED), lasting=True),
    sqlite3.SQLITE_FULL: Failure(StorageFull(_FULL, retry_after=30)),
    sqlite3.SQLITE_BUSY: Failure(StorageUnavailable(_BUSY, retry_after=1)),
    sqlite3.SQLITE_LOCKED: Failure(StorageUnavailable(_BUSY, retry_after=1)),
    sqlite3.SQLITE_PROTOCOL: Failure(StorageUnavailable(_BUSY, retry_after=1)),
    sqlite3.SQLITE_READONLY: Failure(StorageUnavailable(_READ_ONLY)),
    sqlite3.SQLITE_PERM: Failure(StorageUnavailable(_READ_ONLY)),
    sqlite3.SQLITE_CANTOPEN: Failure(StorageUnavailable(_CANNOT_OPEN, retry_after=5)),
    sqlite3.SQLITE_NOMEM: Failure(StorageUnavailable(_NO_MEMORY, retry_after=1)),
}
# SQLSTATE of PostgreSQL: two-character classes, then whole codes.
_POSTGRES_CLASSES = {"08": _LOST, "57": _LOST, "58": _LOST, "53": _LOST, "XX": DAMAGED, "25": _READ_ONLY, "40": _BUSY}
_POSTGRES_FULL = "53100"
_POSTGRES_RETRY = frozenset({"40001", "40P01"})
_POSTGRES_UNIQUE = "23505"
_UNIQUE_ATTEMPTS = 3


def failure_of(error: BaseException) -> Failure | None:
    """What ``error`` says about the storage; None where it says nothing about it."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Failure(StorageFull(_FULL, retry_after=30)) if full else Failure(StorageUnavailable(_CANNOT_OPEN, retry_after=5))
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        return None if code is None else _SQLITE_EXTENDED.get(code) or _SQLITE.get(code & 0xFF)
    if isinstance(error, DBAPIError):
        return _postgres(error)
    return None


def _postgres(error: DBAPIError) -> Failure | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    if state == _POSTGRES_FULL:
        return Failure(StorageFull(_FULL, retry_after=30))
    if state[:2] in _POSTGRES_CLASSES:
        return Failure(StorageUnavailable(_POSTGRES_CLASSES[state[:2]], retry_after=2))
    if error.connection_invalidated or (not state and type(error.orig).__name__ in ("OperationalError", "InterfaceError")):
        return Failure(StorageUnavailable(_LOST, retry_after=2))
    return None


def may_retry(error: BaseException, attempt: int) -> bool:
    """Whether PostgreSQL asks for the whole transaction again: a serialization failure, a deadlock, a lost race for a key."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return state in _POSTGRES_RETRY or (state == _POSTGRES_UNIQUE and attempt < _UNIQUE_ATTEMPTS)


def reraise(error: BaseException) -> None:
    """Raises our error in place of the driver's, where it is about the storage; else does nothing. Logs the driver's own."""
    failure = failure_of(error)
    if failure is None:
        return
    _log.error("the database failed", extra={"data": {"error": type(error).__name__, "reason": failure.error.detail}})
    raise failure.error.again() from error
