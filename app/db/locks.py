"""Locks between processes on one SQLite database, by ``flock`` on files beside it. The kernel drops them when a process dies.

``open``: held shared by whoever has the database open; exclusively by whoever replaces or migrates the file.
``migrate``: held exclusively for the time of a migration, so that processes that start together take turns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05


class FileLock:
    """One ``flock``. Not for sharing between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, *, shared: bool, timeout_s: float = 0) -> bool:
        """Whether the lock was got within ``timeout_s``. A lock that is held already is converted. Raises OSError."""
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise
            else:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Lets go; may be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def open_lock(database: Path) -> FileLock:
    """The lock of those who have ``database`` open."""
    return FileLock(database.with_name(database.name + ".open.lock"))


def migrate_lock(database: Path) -> FileLock:
    """The lock of those who change its schema."""
    return FileLock(database.with_name(database.name + ".migrate.lock"))


@contextmanager
def held(lock: FileLock, *, shared: bool, timeout_s: float, otherwise: Exception) -> Iterator[None]:
    """Holds ``lock`` for a block; raises ``otherwise`` where it is not to be had."""
    try:
        if not lock.acquire(shared=shared, timeout_s=timeout_s):
            raise otherwise
        yield
    finally:
        lock.release()
