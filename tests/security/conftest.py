"""A `World` on an empty SQLite database for each test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.settings import Settings
from app.db import migrate
from app.db.database import Database, open_database
from tests.security.world import World


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database to copy: migrating costs more than most tests."""
    folder = tmp_path_factory.mktemp("template")
    migrate.upgrade(Settings(data_dir=folder))
    return folder / "aprendiz.db"


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    """Settings with a migrated, empty SQLite database."""
    shutil.copy(migrated, tmp_path / "aprendiz.db")
    return Settings(data_dir=tmp_path)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """That database, open."""
    opened = open_database(settings)
    await opened.open()
    yield opened
    await opened.aclose()


@pytest.fixture
async def world(settings: Settings, database: Database) -> AsyncIterator[World]:
    """All parts on that database."""
    made = World(settings, database)
    yield made
    await made.aclose()
