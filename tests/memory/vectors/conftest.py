"""The stores, each over a real database with the rows that a test puts there."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from app.core.addresses import server_address
from app.core.settings import Settings
from app.db.database import open_database
from app.db.location import locate
from app.memory.vectors.base import VectorStore
from app.memory.vectors.chroma import ChromaServerStore, ChromaStore
from app.memory.vectors.faiss import FaissStore
from app.memory.vectors.pgvector import PgVectorStore
from tests.db.conftest import cluster, postgres_name, postgres_settings
from tests.memory.vectors.world import World

__all__ = ["cluster", "postgres_name"]

KINDS = [
    "faiss",
    "chroma",
    pytest.param("chroma server", marks=pytest.mark.slow),
    pytest.param("pgvector", marks=pytest.mark.postgres),
]


@pytest.fixture(scope="session")
def chroma_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Chroma server on a loopback port."""
    folder = tmp_path_factory.mktemp("chroma")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "chroma"),
        "run",
        "--path",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert time.monotonic() < deadline and server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@dataclass(frozen=True)
class Site:
    """Where a store of a kind lives."""

    kind: str
    settings: Settings
    chroma_url: str

    @property
    def folder(self) -> Path:
        """The store's files."""
        return self.settings.data_dir / "vectors"

    def store(self, world: World) -> VectorStore:
        """Not yet open."""
        if self.kind == "pgvector":
            return PgVectorStore(world.source, world.database, locate(self.settings).url)
        if self.kind == "chroma":
            return ChromaStore(world.source, self.folder)
        if self.kind == "chroma server":
            return ChromaServerStore(world.source, server_address("memory.store", self.chroma_url))
        return FaissStore(world.source, self.folder, quiet_s=0.2)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Site:
    """A place for the kind of store that the test names, with a migrated, empty database."""
    kind, folder = str(request.param), tmp_path_factory.mktemp("site")
    if kind == "pgvector":
        cluster, name = request.getfixturevalue("cluster"), request.getfixturevalue("postgres_name")
        return Site(kind, postgres_settings(cluster, name, folder), "")
    shutil.copy(migrated_file, folder / "aprendiz.db")
    return Site(kind, Settings(data_dir=folder), request.getfixturevalue("chroma_url") if kind == "chroma server" else "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(site: Site) -> AsyncIterator[World]:
    """Its open database. Owners are new in each test, so tests share it."""
    database = open_database(site.settings)
    await database.open()
    yield World(database)
    await database.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(site: Site, world: World) -> AsyncIterator[VectorStore]:
    """The open store; one child process for a whole module."""
    made = site.store(world)
    await made.open()
    yield made
    await made.aclose()
