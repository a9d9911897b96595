"""A `World` on an empty SQLite database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.core.settings import Settings
from app.db.database import Database
from tests.security.world import World


@pytest.fixture
def database(sqlite: Database) -> Database:
    """The database of `settings`, open."""
    return sqlite


@pytest.fixture
async def world(settings: Settings, database: Database) -> AsyncIterator[World]:
    """All parts on that database."""
    made = World(settings, database)
    yield made
    await made.aclose()
