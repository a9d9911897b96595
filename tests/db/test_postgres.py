"""What only a server can do: go away, come back, hang."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.errors import StorageUnavailable
from app.core.metrics import Metrics
from app.db.database import Database, open_database
from app.db.users import Users
from tests.db import make
from tests.db.conftest import postgres_settings
from tests.db.postgres import Cluster, started

pytestmark = pytest.mark.postgres
_numbers = itertools.count()
_OURS = "FROM pg_stat_activity WHERE application_name = 'aprendiz'"


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A server that a test may harm."""
    with started() as cluster:
        yield cluster


async def opened(cluster: Cluster, folder: Path, metrics: Metrics | None = None) -> Database:
    name = f"own_{next(_numbers)}"
    cluster.execute(f"CREATE DATABASE {name}")
    database = open_database(postgres_settings(cluster, name, folder), metrics)
    await database.open()
    return database


async def test_a_server_that_goes_and_comes_back_needs_no_restart_of_ours(own_cluster: Cluster, tmp_path: Path) -> None:
    metrics = Metrics()
    database = await opened(own_cluster, tmp_path, metrics)
    users = Users(database)
    stored = [await make.stored_user(database) for _ in range(10)]
    assert metrics.registry.get_sample_value("aprendiz_db_commit_seconds_count") == 10
    await asyncio.to_thread(own_cluster.stop)
    for _ in range(3):
        with pytest.raises(StorageUnavailable) as error:
            await users.create(make.user())
        assert error.value.retry_after is not None
        assert str(own_cluster.folder) not in error.value.detail
        with pytest.raises(StorageUnavailable):
            await users.list()
        with pytest.raises(StorageUnavailable):
            await database.ping()
    await asyncio.to_thread(own_cluster.start_server)
    await database.ping()
    assert await users.list() == stored[::-1]
    await users.create(make.user())
    assert database.unavailable() is None
    await database.aclose()


async def test_a_connection_that_is_cut_is_replaced(own_cluster: Cluster, tmp_path: Path) -> None:
    database = await opened(own_cluster, tmp_path)
    await asyncio.gather(*(database.ping() for _ in range(8)))
    assert await asyncio.to_thread(own_cluster.execute, f"SELECT count(pg_terminate_backend(pid)) {_OURS}") != [(0,)]
    await asyncio.gather(*(make.stored_user(database) for _ in range(8)))
    assert await Users(database).count() == 8
    await database.aclose()


async def test_a_hanging_server_holds_no_caller_for_long(own_cluster: Cluster, tmp_path: Path) -> None:
    database = await opened(own_cluster, tmp_path)

    def hang(signal_number: int) -> None:
        for line in own_cluster.execute(f"SELECT pid {_OURS}"):
            os.kill(int(str(line[0])), signal_number)

    await database.ping()
    await asyncio.to_thread(hang, signal.SIGSTOP)
    async with asyncio.timeout(20):
        with pytest.raises(StorageUnavailable, match="in time"):
            await database.read(lambda connection: connection.execute(text("SELECT 1")).scalar_one())
    await asyncio.to_thread(hang, signal.SIGCONT)
    await database.ping()
    await database.aclose()


async def test_statements_and_isolation(own_cluster: Cluster, tmp_path: Path) -> None:
    database = await opened(own_cluster, tmp_path)
    show = text("SHOW transaction_isolation")
    assert await database.write(lambda connection: connection.execute(show).scalar_one()) == "serializable"
    assert await database.read(lambda connection: connection.execute(show).scalar_one()) == "repeatable read"
    with pytest.raises(StorageUnavailable):
        await database.read(lambda connection: connection.exec_driver_sql("CREATE TABLE t (x int)"))
    await database.aclose()
