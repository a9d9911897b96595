"""The stores, each over a real database with the rows that a test puts there."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.core.addresses import server_address
from app.db.database import Database, open_database
from app.db.location import locate
from app.db.schema import metadata
from app.memory.vectors.base import VectorStore
from app.memory.vectors.chroma import ChromaServerStore, ChromaStore
from app.memory.vectors.faiss import FaissStore
from app.memory.vectors.pgvector import PgVectorStore
from tests.db.conftest import cluster, postgres_name, postgres_settings
from tests.memory.vectors.world import World

__all__ = ["cluster", "postgres_name"]

KINDS = ["faiss", "chroma", "chroma server", pytest.param("pgvector", marks=pytest.mark.postgres)]


@pytest.fixture
async def postgres(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An open, empty PostgreSQL database."""
    name = request.getfixturevalue("postgres_name")
    database = open_database(postgres_settings(request.getfixturevalue("cluster"), name, tmp_path))
    await database.open()
    names = ", ".join(table.name for table in metadata.sorted_tables)
    await database.write(lambda connection: connection.exec_driver_sql(f"TRUNCATE {names} CASCADE"))
    yield database
    await database.aclose()


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


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Which store: a test for one of them marks itself with it."""
    found: str = request.param
    return found


@pytest.fixture
def world(kind: str, request: pytest.FixtureRequest) -> World:
    """An empty database of the store's kind."""
    return World(request.getfixturevalue("postgres" if kind == "pgvector" else "sqlite"))


@pytest.fixture
async def store(kind: str, world: World, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorStore]:
    """An open store of each kind."""
    made: VectorStore
    if kind == "pgvector":
        settings = postgres_settings(request.getfixturevalue("cluster"), request.getfixturevalue("postgres_name"), tmp_path)
        made = PgVectorStore(world.source, world.database, locate(settings).url)
    elif kind == "chroma":
        made = ChromaStore(world.source, tmp_path / "vectors")
    elif kind == "chroma server":
        made = ChromaServerStore(world.source, server_address("memory.store", request.getfixturevalue("chroma_url")))
    else:
        made = FaissStore(world.source, tmp_path / "vectors", quiet_s=0.2)
    await made.open()
    yield made
    await made.aclose()
