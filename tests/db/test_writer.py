"""The one writer of SQLite: what shares a commit, what a failure touches, and what happens at the edges."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from app.core.errors import Conflict, Overloaded, ShuttingDown, StorageUnavailable
from app.core.metrics import Metrics
from app.core.settings import Settings
from app.db.database import Database, open_database
from app.db.predictions import Predictions
from app.db.rows import values_of
from app.db.schema import predictions, users, versions
from app.db.users import Users
from tests.db import make


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(predictions)).scalar_one()


@contextmanager
def busy_writer(database: Database) -> Iterator[threading.Event]:
    """Keeps the writer's thread in a write until the event is set, so that what comes meanwhile makes one batch."""
    go = threading.Event()
    asyncio.get_running_loop().call_later(30, go.set)
    held = asyncio.ensure_future(database.write(lambda _: go.wait()))
    try:
        yield go
    finally:
        go.set()
        assert not held.cancelled()


async def queued(*calls: Any) -> list[asyncio.Future[Any]]:
    """Starts the calls and lets them reach the queue."""
    futures = [asyncio.ensure_future(call) for call in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return futures


def sample(metrics: Metrics, name: str) -> float:
    """The value of one sample without labels."""
    value = metrics.registry.get_sample_value(name)
    assert value is not None
    return value


async def test_what_waits_shares_one_commit(settings: Settings) -> None:
    metrics = Metrics()
    database = open_database(settings, metrics)
    await database.open()
    owner = await make.stored_user(database)
    commits = sample(metrics, "aprendiz_db_commit_seconds_count")
    with busy_writer(database) as go:
        await asyncio.sleep(0.05)
        waiting = await queued(
            *(Predictions(database).add(make.prediction(owner.id)) for _ in range(50)),
            *(Users(database).create(make.user()) for _ in range(5)),
        )
        go.set()
        await asyncio.gather(*waiting)
    assert sample(metrics, "aprendiz_db_commit_seconds_count") - commits == 2
    assert sample(metrics, "aprendiz_db_commit_tasks_sum") == commits + 1 + 55
    await database.aclose()


async def test_a_failure_in_a_batch_harms_no_other(sqlite: Database) -> None:
    owner = await make.stored_user(sqlite)

    def half_done(connection: Connection) -> None:
        connection.execute(versions.insert().values(values_of(make.version("half"))))
        raise Conflict("not now")

    def wrong(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")

    good = [make.prediction(owner.id) for _ in range(6)]
    twin = good[0]
    with busy_writer(sqlite) as go:
        await asyncio.sleep(0.05)
        waiting = await queued(
            Predictions(sqlite).add(good[0]),
            sqlite.write(half_done),
            Predictions(sqlite).add(good[1]),
            Predictions(sqlite).add(twin),
            sqlite.write(wrong),
            sqlite.append(predictions, values_of(make.prediction(owner.id, input={"x": float("nan")}))),
            sqlite.append(predictions, values_of(make.prediction(owner.id, created_at=make.NOW.replace(tzinfo=None)))),
            sqlite.append(predictions, {"id": "incomplete"}),
            sqlite.append(predictions, values_of(make.prediction(owner.id, output="\ud800"))),
            sqlite.append(predictions, values_of(make.prediction("nobody"))),
            *(Predictions(sqlite).add(each) for each in good[2:]),
        )
        go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], Conflict)
    assert results[2] is None
    assert isinstance(results[3], Conflict)
    assert isinstance(results[4], OperationalError)
    assert all(isinstance(each, Exception) and not isinstance(each, StorageUnavailable) for each in results[5:10])
    assert isinstance(results[9], IntegrityError)
    assert results[10:] == [None] * 4
    assert await sqlite.read(_count) == 6
    assert await sqlite.read(lambda connection: connection.execute(select(versions)).all()) == []
    assert sqlite.unavailable() is None


async def test_a_cancelled_caller_does_not_break_the_batch(sqlite: Database) -> None:
    owner = await make.stored_user(sqlite)
    with busy_writer(sqlite) as go:
        await asyncio.sleep(0.05)
        waiting = await queued(*(Predictions(sqlite).add(make.prediction(owner.id)) for _ in range(20)))
        for each in waiting[::2]:
            each.cancel()
        go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError, type(None)] * 10
    assert await sqlite.read(_count) == 10


async def test_a_caller_cancelled_in_mid_write_leaves_a_whole_transaction(sqlite: Database) -> None:
    started, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        started.set()
        go.wait(10)
        connection.execute(versions.insert().values(values_of(make.version("slow"))))

    running = asyncio.ensure_future(sqlite.write(slow))
    await asyncio.to_thread(started.wait, 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    go.set()
    await sqlite.write(lambda connection: connection.execute(versions.insert().values(values_of(make.version("next")))))
    found = await sqlite.read(
        lambda connection: connection.execute(select(versions.c.id).order_by(versions.c.id)).scalars().all()
    )
    assert found == ["next", "slow"]


async def test_a_full_queue_refuses_and_then_serves_again(sqlite: Database) -> None:
    with busy_writer(sqlite) as go:
        await asyncio.sleep(0.05)
        waiting = await queued(*(sqlite.write(lambda _: None) for _ in range(4096 + 5)))
        go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results].count(Overloaded) == 5
    await sqlite.write(lambda _: None)


async def test_closing_finishes_what_is_queued(settings: Settings) -> None:
    database = open_database(settings)
    await database.open()
    owner = await make.stored_user(database)
    waiting = await queued(*(Predictions(database).add(make.prediction(owner.id)) for _ in range(200)))
    await database.aclose()
    await database.aclose()
    assert await asyncio.gather(*waiting) == [None] * 200
    for attempt in (database.write(_count), database.read(_count), database.append(users, {}), database.ping()):
        with pytest.raises((ShuttingDown, StorageUnavailable)):
            await attempt
    again = open_database(settings)
    assert again.unavailable() is not None
    await again.open()
    await again.open()
    assert again.unavailable() is None
    await again.ping()
    assert await again.read(_count) == 200
    await again.aclose()
    assert not list(settings.data_dir.glob("*-wal"))


async def test_durability_settings_are_in_force(sqlite: Database) -> None:
    def settings_of(connection: Connection) -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "secure_delete", "wal_autocheckpoint")
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names}

    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "secure_delete": 1,
        "wal_autocheckpoint": 0,
    }
    assert await sqlite.write(settings_of) == wanted
    assert (await sqlite.read(settings_of))["journal_mode"] == "wal"


async def test_a_new_database_is_private(tmp_path: Path) -> None:
    database = open_database(Settings(data_dir=tmp_path / "new"))
    await database.open()
    await database.write(lambda _: None)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    await database.aclose()


async def test_readers_cannot_write_and_see_one_snapshot(sqlite: Database) -> None:
    with pytest.raises(StorageUnavailable):
        await sqlite.read(lambda connection: connection.execute(versions.insert().values(values_of(make.version("v")))))
    loop = asyncio.get_running_loop()

    def twice(connection: Connection) -> tuple[int, int]:
        query = select(func.count()).select_from(versions)
        before = connection.execute(query).scalar_one()
        asyncio.run_coroutine_threadsafe(
            sqlite.write(lambda other: other.execute(versions.insert().values(values_of(make.version("v"))))), loop
        ).result(10)
        return before, connection.execute(query).scalar_one()

    assert await sqlite.read(twice) == (0, 0)
    assert (
        await sqlite.read(lambda connection: connection.execute(select(func.count()).select_from(versions)).scalar_one()) == 1
    )


async def test_errors_of_a_reading_function_pass_unchanged(sqlite: Database) -> None:
    def wrong(_: Connection) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await sqlite.read(wrong)
    with pytest.raises(KeyError, match="mine"):
        await sqlite.write(wrong)


async def test_a_damaged_file_is_named_as_such(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    path = settings.data_dir / "aprendiz.db"
    path.write_bytes(b"not a database at all " * 1000)
    with pytest.raises(StorageUnavailable, match="damaged"):
        await open_database(settings).open()
    assert "aprendiz.db" not in caplog.text


async def test_damage_found_by_the_writer_stops_it(settings: Settings) -> None:
    path = settings.data_dir / "aprendiz.db"
    with sqlite3.connect(path) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'versions'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(data)
    database = open_database(settings)
    await database.open()
    with pytest.raises(StorageUnavailable, match="damaged"):
        await database.write(lambda connection: connection.execute(versions.insert().values(values_of(make.version("v")))))
    assert "restore" in (database.unavailable() or "")
    with pytest.raises(StorageUnavailable, match="damaged"):
        await Users(database).create(make.user())
    with pytest.raises(StorageUnavailable, match="damaged"):
        await database.ping()
    assert await Users(database).count() == 0
    await database.aclose()


async def test_several_event_loops_may_share_one_database(sqlite: Database) -> None:
    def other_loop() -> int:
        async def work() -> int:
            await asyncio.gather(*(Users(sqlite).create(make.user()) for _ in range(10)))
            return await Users(sqlite).count()

        return asyncio.run(work())

    results = await asyncio.gather(asyncio.to_thread(other_loop), *(Users(sqlite).create(make.user()) for _ in range(10)))
    assert results[0] is not None and results[0] >= 10
    assert await Users(sqlite).count() == 20


@pytest.mark.slow
async def test_another_process_that_holds_the_lock_is_reported(sqlite: Database, settings: Settings) -> None:
    other = sqlite3.connect(settings.data_dir / "aprendiz.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="locked"):
        await Users(sqlite).create(make.user())
    other.execute("ROLLBACK")
    other.close()
    await Users(sqlite).create(make.user())
    assert sqlite.unavailable() is None


async def test_no_error_of_the_database_names_what_was_to_be_written(sqlite: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        await sqlite.write(lambda connection: connection.execute(text("INSERT INTO nowhere VALUES (:a)"), {"a": "a canary"}))
    assert "canary" not in str(caught.value)
