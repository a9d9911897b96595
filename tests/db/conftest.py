"""Databases for tests: each test gets an empty one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.core.settings import Database as DatabaseSettings
from app.core.settings import Settings
from app.db.database import Database, open_database
from app.db.schema import metadata
from tests.db.postgres import Cluster, started

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
_numbers = itertools.count()


def postgres_settings(cluster: Cluster, name: str, folder: Path) -> Settings:
    """Settings that name a database of the cluster."""
    return Settings(data_dir=folder, database=DatabaseSettings(url=SecretStr(cluster.url(name))))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for the session."""
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def postgres_name(request: pytest.FixtureRequest) -> str:
    """A database of this module's own."""
    name = f"test_{next(_numbers)}"
    request.getfixturevalue("cluster").execute(f"CREATE DATABASE {name}")
    return name


@pytest.fixture(params=BOTH)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open, empty database of each kind."""
    if request.param == "sqlite":
        chosen = request.getfixturevalue("settings")
    else:
        chosen = postgres_settings(request.getfixturevalue("cluster"), request.getfixturevalue("postgres_name"), tmp_path)
    database = open_database(chosen)
    await database.open()
    if request.param == "postgres":
        names = ", ".join(table.name for table in metadata.sorted_tables)
        await database.write(lambda connection: connection.exec_driver_sql(f"TRUNCATE {names} CASCADE"))
    yield database
    await database.aclose()
