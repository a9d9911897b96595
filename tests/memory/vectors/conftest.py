"""The stores, each over a real database with the rows that a test puts there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.db.database import Database
from app.memory.vectors.base import VectorStore
from app.memory.vectors.faiss import FOLDER, FaissStore
from tests.memory.vectors.world import World

KINDS = ["faiss"]


def make(kind: str, world: World, folder: Path) -> VectorStore:
    """A store of a kind, not yet open."""
    assert kind == "faiss"
    return FaissStore(world.source, folder / FOLDER, quiet_s=0.2)


@pytest.fixture
def world(sqlite: Database) -> World:
    """An empty database of each store's own kind."""
    return World(sqlite)


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[VectorStore]:
    """An open store of each kind."""
    made = make(request.param, world, tmp_path)
    await made.open()
    yield made
    await made.aclose()
