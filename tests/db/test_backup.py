"""Backups: one instant, hashed, checked before use; a restore never harms what it replaces."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.core.errors import ConfigurationError, Conflict, NotFound, StorageUnavailable
from app.core.settings import Database as DatabaseSettings
from app.core.settings import Settings
from app.db.backup import backup, restore, verify
from app.db.database import Database, open_database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.users import Users
from tests.db import make


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def check_sum_file(path: Path) -> None:
    """What a person would do; and nothing half-made lies beside."""
    checked = subprocess.run(["sha256sum", "-c", path.name + ".sha256"], cwd=path.parent, capture_output=True, text=True)
    assert checked.stdout == f"{path.name}: OK\n"
    assert not [each for each in path.parent.iterdir() if ".part" in each.name]


def rehash(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


async def test_a_backup_during_writes_is_one_instant(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    owner = await make.stored_user(sqlite)
    done = asyncio.Event()

    async def write() -> int:
        count = 0
        while not done.is_set():
            said = make.prediction(owner.id, output="x" * 3000)
            await Predictions(sqlite).add(said)
            await Feedback(sqlite).store(make.feedback(said.id, owner.id))
            count += 1
        return count

    writers = [asyncio.ensure_future(write()) for _ in range(8)]
    await asyncio.sleep(0.3)
    infos = [await asyncio.to_thread(backup, settings, tmp_path / f"copy-{n}.db") for n in range(3)]
    done.set()
    written = sum(await asyncio.gather(*writers))
    counts = []
    for info in infos:
        connection = sqlite3.connect(info.path)
        assert connection.execute("PRAGMA foreign_key_check").fetchone() is None
        counts.append(connection.execute("SELECT count(*) FROM feedback").fetchone()[0])
        connection.close()
        assert verify(info.path).sha256 == info.sha256
        assert info.size_bytes == info.path.stat().st_size
    assert 0 < counts[0] <= counts[1] <= counts[2] <= written
    check_sum_file(infos[0].path)


async def test_a_restore_to_an_empty_machine_differs_in_nothing(sqlite: Database, settings: Settings, tmp_path: Path) -> None:
    users = [await make.stored_user(sqlite, f"Ñandú {n}") for n in range(20)]
    info = await asyncio.to_thread(backup, settings)
    assert info.path.parent == settings.data_dir / "backups"
    assert (info.path.stat().st_mode & 0o777) == 0o600
    empty = Settings(data_dir=tmp_path / "empty")
    restored = restore(empty, info.path)
    assert restored.replaced is None
    assert dump(empty.data_dir / "aprendiz.db") == dump(info.path)
    database = open_database(empty)
    await database.open()
    assert await Users(database).list() == users[::-1]
    await database.aclose()


async def test_a_restore_keeps_what_it_replaces(settings: Settings) -> None:
    database = open_database(settings)
    await database.open()
    before = await make.stored_user(database)
    info = await asyncio.to_thread(backup, settings)
    after = await make.stored_user(database)
    with pytest.raises(Conflict, match="Stop it first"):
        restore(settings, info.path)
    await database.aclose()
    # As a killed service leaves it: a log that is not yet in the file goes with the old database and never meets the new one.
    path = settings.data_dir / "aprendiz.db"
    wal = path.with_name("aprendiz.db-wal")
    wal.write_bytes(b"left over")
    restored = restore(settings, info.path)
    assert restored.replaced is not None
    assert not wal.exists()
    assert restored.replaced.with_name(restored.replaced.name + "-wal").read_bytes() == b"left over"
    restored.replaced.with_name(restored.replaced.name + "-wal").unlink()
    assert after.id in "\n".join(dump(restored.replaced))
    await database.open()
    assert await Users(database).list() == [before]
    await database.aclose()


@pytest.mark.parametrize("harm", ["flip", "truncate", "no-sum", "empty-sum", "flip-rehashed", "text-rehashed", "missing"])
def test_a_bad_backup_is_refused_and_nothing_changes(settings: Settings, harm: str) -> None:
    source = backup(settings).path
    data = bytearray(source.read_bytes())
    beside = source.with_name(source.name + ".sha256")
    match harm:
        case "flip":
            data[len(data) // 2] ^= 1
            source.write_bytes(data)
        case "truncate":
            source.write_bytes(data[: len(data) // 2])
        case "no-sum":
            beside.unlink()
        case "empty-sum":
            beside.write_text("")
        case "flip-rehashed":
            data[4096 : 4096 * 3] = b"\xff" * 8192
            source.write_bytes(data)
            rehash(source)
        case "text-rehashed":
            source.write_bytes(b"not a database " * 500)
            rehash(source)
        case _:
            source.unlink()
    path = settings.data_dir / "aprendiz.db"
    before = path.read_bytes()
    with pytest.raises((StorageUnavailable, NotFound)) as error:
        restore(settings, source)
    assert str(settings.data_dir) not in error.value.detail
    assert path.read_bytes() == before
    left = {each.name for each in settings.data_dir.iterdir() if not each.name.endswith((".lock", "-wal", "-shm"))}
    assert left == {"aprendiz.db", "backups"}


def test_a_backup_never_overwrites(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "mine.db"
    backup(settings, target)
    with pytest.raises(Conflict, match="never overwritten"):
        backup(settings, target)
    verify(target)


def test_without_a_database_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        backup(Settings(data_dir=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_postgres_has_its_own_tools(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database=DatabaseSettings(url=SecretStr("postgresql://u:hunter2@db/x")))
    with pytest.raises(ConfigurationError, match="pg_dump"):
        backup(settings)
    with pytest.raises(ConfigurationError, match="pg_restore") as error:
        restore(settings, tmp_path / "x.db")
    assert "hunter2" not in error.value.detail
