"""Backup and restore of a SQLite database: online, hashed, checked before use. PostgreSQL has tools of its own, which we name.

A backup is one SQLite file and beside it ``NAME.sha256`` in the form that ``sha256sum -c`` reads.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.core.errors import ConfigurationError, Conflict, NotFound, StorageUnavailable
from app.core.files import hash_file, sync
from app.core.settings import Settings
from app.db.failures import reraise
from app.db.location import Location, locate
from app.db.locks import held, open_lock

_KEPT = 5
_BEFORE = "before-migration-"
_PAGES_PER_STEP = 1024
_PAUSE_S = 0.01
_CHUNK = 1 << 20
_USE_PG_DUMP = (
    'The database is PostgreSQL: back it up with `pg_dump --format=custom --file=aprendiz.dump "$DATABASE_URL"` and restore it '
    'with `pg_restore --clean --if-exists --dbname="$DATABASE_URL" aprendiz.dump`.'
)


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """``path``: the backup that was written or read. ``replaced``: after a restore, where the former database now lies."""

    path: Path
    sha256: str
    size_bytes: int
    created_at: datetime
    replaced: Path | None = None


def backup(settings: Settings, target: Path | None = None) -> BackupInfo:
    """Copies the database as it is at one instant, while it is written.

    ``target``: a new file; unless told, one named by the time in ``backups`` in the data directory.

    Raises:
        ConfigurationError: PostgreSQL. NotFound: there is no database yet. Conflict: ``target`` exists.
        StorageFull, StorageUnavailable: no space, or the disk fails; no half file is left.
    """
    location = _sqlite_only(settings)
    if target is None:
        target = location.backups / f"aprendiz-{_stamp()}.db"
    return _translated(location.sqlite_path, target)


def before_migration(location: Location, revision: str) -> BackupInfo:
    """The automatic backup: the newest five are kept. Raises as `backup`."""
    info = _translated(location.sqlite_path, location.backups / f"{_BEFORE}{_stamp()}-{revision}.db")
    for old in sorted(location.backups.glob(f"{_BEFORE}*.db"))[:-_KEPT]:
        old.unlink()
        _sum_file(old).unlink(missing_ok=True)
    return info


def verify(source: Path) -> BackupInfo:
    """Checks a backup: its hash, then SQLite's own check of the whole file.

    Raises:
        NotFound: no such file, or none with its hash. StorageUnavailable: it is not what was written.
    """
    if not source.is_file():
        raise NotFound("There is no backup of that name.")
    try:
        expected = _sum_file(source).read_text(encoding="ascii").split()[0]
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        raise NotFound(
            "The backup has no readable .sha256 file beside it, so nobody can tell whether it is whole. Use another backup."
        ) from None
    found = hash_file(source)
    if found != expected:
        raise StorageUnavailable(
            "The backup is damaged: its SHA-256 is not the one that was written with it. Use another backup."
        )
    _check_integrity(source)
    stat = source.stat()
    return BackupInfo(source, found, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def restore(settings: Settings, source: Path) -> BackupInfo:
    """Puts a backup in the database's place and keeps the former database beside it.

    Raises:
        ConfigurationError: PostgreSQL. Conflict: the service has the database open. NotFound, StorageUnavailable: as `verify`;
        the database is as before.
    """
    path = _sqlite_only(settings).sqlite_path
    try:
        info = verify(source)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        busy = Conflict("The service has the database open. Stop it first, then restore.")
        with held(open_lock(path), shared=False, timeout_s=0, otherwise=busy):
            with _temporary(path) as fresh:
                _copy_private(source, fresh)
                if hash_file(fresh) != info.sha256:
                    raise StorageUnavailable(
                        "The copy of the backup does not match it; the disk may be failing. Nothing was changed."
                    )
                replaced = _set_aside(path)
                os.replace(fresh, path)
            sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        reraise(error)
        raise
    return BackupInfo(info.path, info.sha256, info.size_bytes, info.created_at, replaced)


def _sqlite_only(settings: Settings) -> Location:
    location = locate(settings)
    if location.path is None:
        raise ConfigurationError(_USE_PG_DUMP)
    return location


def _translated(path: Path, target: Path) -> BackupInfo:
    if not path.exists():
        raise NotFound("There is no database to back up yet.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _backup(path, target)
    except (OSError, sqlite3.Error) as error:
        reraise(error)
        raise


def _backup(path: Path, target: Path) -> BackupInfo:
    if target.exists() or _sum_file(target).exists():
        raise Conflict("A file of that name exists; backups are never overwritten. Choose another name.")
    with _temporary(target) as fresh:
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy_online(path, fresh)
        _check_integrity(fresh)
        digest = hash_file(fresh)
        sync(fresh)
        _write_sum(target, digest)
        os.replace(fresh, target)
    sync(target.parent)
    return BackupInfo(target, digest, target.stat().st_size, datetime.now(UTC))


def _copy_online(path: Path, target: Path) -> None:
    """One consistent copy."""
    # `mode=ro`: a backup never creates or changes the database, and sees what is in its write-ahead log.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as source:
        # Inside a read transaction every step sees the same snapshot, so writers never make the copy start again.
        source.isolation_level = None
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=_PAGES_PER_STEP, sleep=_PAUSE_S)
            # The copy must be one file: no log beside it.
            copy.execute("PRAGMA journal_mode=DELETE")


def _check_integrity(path: Path) -> None:
    try:
        # `immutable`: no lock, no log, no change. The file is ours alone.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.DatabaseError:
        raise StorageUnavailable("The backup is not a whole SQLite database. Use another backup.") from None
    if found != "ok" or broken is not None:
        raise StorageUnavailable("The database in the backup is damaged: SQLite's own check fails. Use another backup.")


def _set_aside(path: Path) -> Path | None:
    """Keeps the database and its log under another name, then takes the log away: the new file must never meet the old log.

    The database itself stays in its place until the new one replaces it, so that a crash never leaves a gap that the next start
    would fill with an empty database.
    """
    wal, shm = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    aside = None
    if path.exists():
        aside = path.with_name(f"{path.name}.replaced-{_stamp()}")
        if wal.exists():
            _second_name(wal, aside.with_name(aside.name + "-wal"))
        _second_name(path, aside)
        sync(path.parent)
    _drop(wal, shm)
    return aside


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links
        _copy_private(path, name)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside ``target`` for a file that is gone afterwards unless it was renamed."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    _drop(fresh)
    try:
        yield fresh
    finally:
        _drop(
            fresh,
            fresh.with_name(fresh.name + "-journal"),
            fresh.with_name(fresh.name + "-wal"),
            fresh.with_name(fresh.name + "-shm"),
        )


def _drop(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _copy_private(source: Path, target: Path) -> None:
    with source.open("rb") as reader, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)
    sync(target)


def _sum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_sum(target: Path, digest: str) -> None:
    path = _sum_file(target)
    try:
        path.write_text(f"{digest}  {target.name}\n", encoding="ascii")
        sync(path)
    except OSError:
        _drop(path)
        raise


def _stamp() -> str:
    """UTC, sortable, unique to the microsecond."""
    now = time.time_ns() // 1000
    return datetime.fromtimestamp(now / 1e6, UTC).strftime("%Y%m%dT%H%M%S") + f"-{now % 1_000_000:06d}"
