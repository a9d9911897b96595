"""Failing disks, full disks and killed processes: what was acknowledged stays, and the service says what is wrong.

``strace`` makes the kernel's answers fail; a tiny tmpfs is really full.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.core.errors import StorageFull
from app.core.settings import Settings
from app.db.database import open_database
from app.db.predictions import Predictions
from app.db.schema import predictions
from tests.db import child, make

ROOT = Path(__file__).parents[2]
_CALLS = "fdatasync,fsync,pwrite64,ftruncate"


@dataclass
class Outcome:
    """What the child said, and what the kernel was asked."""

    acknowledged: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unavailable: str = ""
    reads: int = -1
    calls: list[str] = field(default_factory=list)


@pytest.fixture
async def owner(settings: Settings) -> str:
    """An account in the database of ``settings``, known to the child."""
    database = open_database(settings)
    await database.open()
    user = await make.stored_user(database)
    await database.aclose()
    (settings.data_dir / "owner").write_text(user.id)
    return user.id


def run_child(folder: Path, how: str, count: int, *, inject: str | None = None, only: Path | None = None) -> Outcome:
    """Runs the child under strace, with a fault where ``inject`` says; ``only``: calls on that file."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = folder / "strace.log"
    command = [strace, "-f", "--seccomp-bpf", "-y", "-q", "-o", str(log), "-e", f"trace={_CALLS}"]
    if inject is not None:
        command += ["-e", f"inject={inject}"]
    if only is not None:
        command += ["-P", str(only)]
    command += [sys.executable, "-m", "tests.db.child", str(folder), how, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    outcome = Outcome(calls=log.read_text().splitlines())
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == "ack":
            outcome.acknowledged.append(rest)
        elif word == "no":
            outcome.refused.append((rest.split()[0], rest.split()[1]))
        elif word == "unavailable":
            outcome.unavailable = rest
        elif word == "reads":
            outcome.reads = int(rest)
    assert done.returncode == 0, done.stderr
    return outcome


def stored_ids(folder: Path) -> set[str]:
    """The predictions in the file, after SQLite's own check of it."""
    connection = sqlite3.connect(folder / "aprendiz.db")
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    found = {row[0] for row in connection.execute("SELECT id FROM predictions")}
    connection.close()
    return found


def _check_stopped(folder: Path, outcome: Outcome, writes: int) -> None:
    assert 0 < len(outcome.refused) <= writes
    assert {kind for kind, _ in outcome.refused} == {"StorageUnavailable"}
    assert "until the service is restarted" in outcome.unavailable
    assert outcome.reads == len(outcome.acknowledged)
    assert set(outcome.acknowledged) <= stored_ids(folder)


def test_each_write_is_synced_and_a_failed_sync_stops_all_writing(settings: Settings, owner: str) -> None:
    outcome = run_child(settings.data_dir, "serial", 50, inject="fdatasync:error=EIO:when=40")
    _check_stopped(settings.data_dir, outcome, 50)
    injected = next(number for number, call in enumerate(outcome.calls) if "INJECTED" in call)
    synced = sum("fdatasync" in call and "-wal" in call for call in outcome.calls[:injected])
    assert synced >= len(outcome.acknowledged) > 30
    assert [call for call in outcome.calls[injected + 1 :] if "pwrite64" in call or "sync" in call] == []


@pytest.mark.slow
def test_a_failed_write_stops_all_writing(settings: Settings, owner: str) -> None:
    outcome = run_child(settings.data_dir, "serial", 20, inject="pwrite64:error=EIO:when=60")
    _check_stopped(settings.data_dir, outcome, 20)


def test_a_failed_sync_of_a_checkpoint_stops_all_writing(settings: Settings, owner: str) -> None:
    """SQLite's own automatic checkpoint would keep this error to itself."""
    database = settings.data_dir / "aprendiz.db"
    outcome = run_child(settings.data_dir, "burst", 1100, inject="fdatasync:error=EIO:when=1", only=database)
    assert any("INJECTED" in call and "aprendiz.db>" in call for call in outcome.calls)
    assert len(outcome.acknowledged) >= 1000  # the checkpoint follows the thousandth; what came after it may be refused
    assert "until the service is restarted" in outcome.unavailable
    assert set(outcome.acknowledged) <= stored_ids(settings.data_dir)


def test_a_full_disk_refuses_and_heals(settings: Settings, owner: str) -> None:
    outcome = run_child(settings.data_dir, "serial", 40, inject="pwrite64:error=ENOSPC:when=60..75")
    assert outcome.refused
    assert {kind for kind, _ in outcome.refused} == {"StorageFull"}
    assert outcome.unavailable == "None"
    stored = stored_ids(settings.data_dir)
    assert set(outcome.acknowledged) == stored
    # It went on by itself: what was acknowledged last came after what was refused last.
    assert max(outcome.acknowledged) > max(identifier for _, identifier in outcome.refused)


@pytest.mark.slow
@pytest.mark.parametrize("when", range(2, 52))
def test_a_failed_sync_at_any_place_loses_nothing(settings: Settings, owner: str, when: int) -> None:
    outcome = run_child(settings.data_dir, "serial", 60, inject=f"fdatasync:error=EIO:when={when}..{when + 5}")
    _check_stopped(settings.data_dir, outcome, 60)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    # Lazily, so that a test which fails with the database open still leaves no mount behind.
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


async def test_a_really_full_disk_loses_nothing_and_heals(tiny_disk: Path) -> None:
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 2_000_000)
    database = open_database(Settings(data_dir=tiny_disk))
    await database.open()
    owner = await make.stored_user(database)
    repository = Predictions(database)
    acknowledged: set[str] = set()

    async def store() -> bool:
        record = make.prediction(owner.id, output="x" * 20_000)
        try:
            await repository.add(record)
        except StorageFull:
            return False
        acknowledged.add(record.id)
        return True

    async def stored() -> set[str]:
        return set(await database.read(lambda connection: connection.execute(select(predictions.c.id)).scalars()))

    for _ in range(30):
        results = await asyncio.gather(*(store() for _ in range(10)))
        if not all(results):
            break
    else:
        pytest.fail("the disk never filled")
    for _ in range(100):  # what is smaller than the batch may still fit
        if not await store():
            break
    assert [await store() for _ in range(5)] == [False] * 5
    assert database.unavailable() is None
    assert await stored() == acknowledged
    ballast.unlink()
    assert all([await store() for _ in range(20)])
    assert await stored() == acknowledged
    await database.aclose()
    assert stored_ids(tiny_disk) == acknowledged


def _kill_rounds(folder: Path, owner: str, rounds: int) -> int:
    """Kills a writing process again and again; returns how many writes were acknowledged. Each of them must be there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.db.child", "app.db.sqlite", "app.db.migrate"])
    chance = random.Random(7)
    acknowledged: set[tuple[str, str]] = set()
    for _ in range(rounds):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=child.write_until_killed, args=(str(folder), owner, sender))
        process.start()
        sender.close()
        assert receiver.poll(60), "the child never wrote"
        process.join(timeout=chance.uniform(0.02, 0.25))
        process.kill()
        process.join()
        while True:
            try:
                said, given = receiver.recv_bytes().decode().split()
            except EOFError:
                break
            acknowledged.add((said, given))
        receiver.close()
    connection = sqlite3.connect(folder / "aprendiz.db")
    assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert connection.execute("PRAGMA foreign_key_check").fetchone() is None
    stored = set(connection.execute("SELECT prediction_id, id FROM feedback"))
    keys = connection.execute("SELECT count(*), count(DISTINCT idempotency_key) FROM feedback").fetchone()
    connection.close()
    assert acknowledged - stored == set()
    assert keys[0] == keys[1]
    return len(acknowledged)


def test_a_killed_process_loses_nothing_that_it_acknowledged(settings: Settings, owner: str) -> None:
    assert _kill_rounds(settings.data_dir, owner, 20) > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_many_times_loses_nothing(settings: Settings, owner: str) -> None:
    assert _kill_rounds(settings.data_dir, owner, 120) > 120


async def test_a_killed_process_leaves_a_database_that_opens_at_once(settings: Settings, owner: str) -> None:
    await asyncio.to_thread(_kill_rounds, settings.data_dir, owner, 1)
    database = open_database(settings)
    await database.open()
    count = await database.read(
        lambda connection: connection.execute(select(func.count()).select_from(predictions)).scalar_one()
    )
    assert count > 0
    await database.aclose()
