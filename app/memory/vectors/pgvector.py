"""Vectors in the service's own PostgreSQL, by the extension pgvector. Rows go with the account; several services share them.

Owner, collection and space stand in each query. Small partitions are searched exactly; a large one gets an HNSW index of its
own, so that no other owner's rows are in the way.
"""

from __future__ import annotations

import array
import asyncio
import logging
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import AprendizError, ConfigurationError, Unavailable
from app.db.connect import postgres_engine
from app.db.database import Database
from app.memory.vectors.base import Hit, Partition, VectorSource
from app.memory.vectors.following import MAX_K, check_space, check_vector

EXACT_ROWS: Final = 10_000
_MAX_INDEXED_DIMENSIONS = 2000
_MAX_EF = 1000
_MIN_EF = 64
_BATCH = 250
_ATTEMPTS = 40
_PAUSE_S = 0.2
_LEASE_S = 5
_LOCK = 0x61707276  # "aprv": two services that start at once
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS vector_partitions (
        number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        collection TEXT NOT NULL, space TEXT NOT NULL,
        generation BIGINT, rows BIGINT NOT NULL DEFAULT 0,
        turn BIGINT NOT NULL DEFAULT 0, since TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
        UNIQUE (user_id, collection, space))""",
    """CREATE TABLE IF NOT EXISTS vector_rows (
        partition BIGINT NOT NULL REFERENCES vector_partitions (number) ON DELETE CASCADE,
        user_id TEXT NOT NULL, collection TEXT NOT NULL, space TEXT NOT NULL,
        id TEXT NOT NULL, content_hash TEXT NOT NULL, embedding vector NOT NULL,
        PRIMARY KEY (partition, id))""",
)
_TUNE = text("SELECT set_config('hnsw.ef_search', :wide, true), set_config('hnsw.iterative_scan', 'strict_order', true)")
_MINE = "user_id = :user_id AND collection = :collection AND space = :space"

logger = logging.getLogger(__name__)


class _Overtaken(Exception):
    """Another service has taken the partition over: we said nothing for too long."""


class PgVectorStore:
    """See `VectorStore`.

    Args:
        database: a PostgreSQL one, open before the store.
        url: of the same database, for the one connection that builds indexes: that goes outside transactions.
        exact_rows: up to here a partition has no index.
    """

    def __init__(self, source: VectorSource, database: Database, url: URL, *, exact_rows: int = EXACT_ROWS) -> None:
        self.name = "pgvector"
        self._source, self._database, self._url = source, database, url
        self._exact_rows = exact_rows
        self._locks: weakref.WeakValueDictionary[Partition, asyncio.Lock] = weakref.WeakValueDictionary()
        self._turns: dict[Partition, int] = {}
        self._builds: dict[int, asyncio.Task[None]] = {}
        self._state = "closed"

    async def available(self) -> bool:
        """Whether the server has the extension, or offers it to this account. Raises StorageUnavailable."""
        query = text("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
        return bool(await self._database.read(lambda connection: connection.execute(query).scalar_one()))

    async def open(self) -> None:
        """Makes extension and tables where they are missing."""

        def work(connection: Connection) -> None:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if connection.execute(text("SELECT to_regclass('vector_rows')")).scalar_one() is not None:
                return
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
            for statement in _SCHEMA:
                connection.execute(text(statement))

        try:
            if not await self.available():
                raise ConfigurationError(
                    "memory.store: the PostgreSQL server does not have the extension vector; install pgvector there, "
                    "or choose faiss."
                )
            await self._database.write(work)
        except (SQLAlchemyError, AprendizError) as error:
            if isinstance(error, AprendizError):
                raise
            raise ConfigurationError(
                "memory.store: this database account may not make the extension vector or its tables. Let an administrator "
                "of the database run CREATE EXTENSION vector, or choose faiss."
            ) from None
        self._state = "ready"

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """See `VectorStore.search`. Raises InvalidRequest for a vector of another length, not finite or not of length 1."""
        check_vector(partition, vector)
        k = min(max(k, 1), MAX_K)
        generation = await self._source.generation(partition.user_id, partition.collection)
        if generation == 0:
            return []
        for _ in range(_ATTEMPTS):
            found = await self._database.read(lambda connection: self._find(connection, partition, vector, k, generation))
            if found is not None:
                return found
            await self._follow(partition, generation)
        raise Unavailable("The search for vectors keeps being overtaken. Try again in a moment.", retry_after=2)

    async def refresh(self, partition: Partition) -> None:
        """See `VectorStore.refresh`."""
        check_space(partition)
        await self._follow(partition, None)
        others = text("DELETE FROM vector_partitions WHERE user_id = :user_id AND collection = :collection AND space <> :space")
        await self._database.write(lambda connection: connection.execute(others, _names(partition)))

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """See `VectorStore.forget`."""
        query, values = "DELETE FROM vector_partitions WHERE user_id = :user_id", {"user_id": user_id}
        if collection is not None:
            query, values = query + " AND collection = :collection", {**values, "collection": collection}
        await self._database.write(lambda connection: connection.execute(text(query), values))

    def status(self) -> Mapping[str, Any]:
        """See `VectorStore.status`."""
        return {"store": self.name, "state": self._state, "building": len(self._builds)}

    async def aclose(self) -> None:
        """See `VectorStore.aclose`. An index that is being built is finished by the server, or found invalid and made anew."""
        self._state = "closed"
        builds = list(self._builds.values())
        for build in builds:
            build.cancel()
        await asyncio.gather(*builds, return_exceptions=True)

    async def built(self) -> None:
        """Waits for indexes that are being built; for tests and measurements."""
        await asyncio.gather(*self._builds.values(), return_exceptions=True)

    # -- search -------------------------------------------------------------------------------------------------------

    def _find(self, connection: Connection, partition: Partition, vector: bytes, k: int, generation: int) -> list[Hit] | None:
        """None: what is here is older than ``generation``."""
        there = _look_up(connection, partition)
        if there is None or there.generation is None or there.generation < generation:
            return None
        values: dict[str, Any] = {**_names(partition), "vector": _literal(vector), "k": k}
        if there.rows <= self._exact_rows or partition.dimensions > _MAX_INDEXED_DIMENSIONS:
            order = "embedding <#> CAST(:vector AS vector), id"  # not what an index is over: exact, equal scores by id
        else:
            values["k"] = max(4 * k, k + 32)
            wide = min(max(_MIN_EF, values["k"]), _MAX_EF)
            connection.execute(_TUNE, {"wide": str(wide)})
            size = f"vector({partition.dimensions:d})"
            order = f"(embedding::{size}) <#> CAST(:vector AS {size})"
        # The number is ours, and stands in the text because an index of one partition is used only then.
        query = text(
            f"SELECT id, embedding <#> CAST(:vector AS vector) AS distance FROM vector_rows "  # noqa: S608
            f"WHERE partition = {there.number:d} AND {_MINE} ORDER BY {order} LIMIT :k"
        )
        hits = [Hit(row.id, _score(row.distance)) for row in connection.execute(query, values)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    # -- following the database ---------------------------------------------------------------------------------------

    async def _follow(self, partition: Partition, wanted: int | None) -> None:
        lock = self._locks.get(partition)
        if lock is None:
            lock = self._locks[partition] = asyncio.Lock()
        async with lock:
            generation = await self._source.generation(partition.user_id, partition.collection)
            there = await self._database.read(lambda connection: _look_up(connection, partition))
            seen = None if there is None else there.generation
            if seen is not None and (seen == generation or (wanted is not None and seen >= wanted)):
                return
            try:
                await self._take_over(partition, generation)
            except _Overtaken:
                logger.info("another service brings the same vectors up to date")
                await asyncio.sleep(_PAUSE_S)

    async def _take_over(self, partition: Partition, generation: int) -> None:
        last = self._turns.get(partition, -1)  # of an attempt of ours that was broken off
        begun = await self._database.write(lambda connection: _begin(connection, partition, last))
        if begun is None:  # the account is gone
            return
        number, turn = begun
        self._turns[partition] = turn
        wanted = await self._source.ids(partition)
        query = text(f"SELECT id, content_hash FROM vector_rows WHERE partition = :number AND {_MINE}")  # noqa: S608
        values = {**_names(partition), "number": number}
        have = await self._database.read(
            lambda connection: {row.id: row.content_hash for row in connection.execute(query, values)}
        )
        gone = [id for id, content in have.items() if wanted.get(id) != content]
        for ids in _batches(gone, 4 * _BATCH):
            await self._database.write(lambda connection, ids=ids: _delete(connection, number, turn, ids))  # type: ignore[misc]
        for ids in _batches([id for id, content in wanted.items() if have.get(id) != content], _BATCH):
            rows = _rows(partition, number, await self._source.vectors(partition, ids), wanted)
            await self._database.write(lambda connection, rows=rows: _insert(connection, number, turn, rows))  # type: ignore[misc]
        rows_now = await self._database.write(lambda connection: _commit(connection, number, turn, generation))
        self._turns.pop(partition, None)
        if rows_now > self._exact_rows and partition.dimensions <= _MAX_INDEXED_DIMENSIONS and number not in self._builds:
            build = asyncio.create_task(asyncio.to_thread(self._build, number, partition.dimensions), name="vectors index")
            self._builds[number] = build
            build.add_done_callback(lambda _: self._builds.pop(number, None))

    def _build(self, number: int, dimensions: int) -> None:
        """An index over one partition, beside reads and writes; in a thread of its own. Failing, searches stay exact."""
        name = f"vector_rows_p{number:d}"
        engine = postgres_engine(self._url, pool_size=0)
        try:
            with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
                found = connection.execute(valid, {"name": name}).scalar_one_or_none()
                if found:
                    return
                if found is not None:  # a build that was broken off
                    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
                _drop_unused(connection)
                connection.execute(text("SET maintenance_work_mem = '512MB'"))
                connection.execute(
                    text(
                        f"CREATE INDEX CONCURRENTLY {name} ON vector_rows "
                        f"USING hnsw ((embedding::vector({dimensions:d})) vector_ip_ops) WHERE partition = {number:d}"
                    )
                )
                connection.execute(text("ANALYZE vector_rows"))
        except SQLAlchemyError as error:
            logger.warning("an index of vectors could not be built", extra={"data": {"error": type(error).__name__}})
        finally:
            engine.dispose()


def _drop_unused(connection: Connection) -> None:
    """Indexes of partitions that went with their account."""
    query = text(
        "SELECT relname FROM pg_class WHERE relkind = 'i' AND relname ~ '^vector_rows_p[0-9]+$' AND NOT EXISTS "
        "(SELECT 1 FROM vector_partitions WHERE number = substring(relname from '[0-9]+$')::bigint)"
    )
    for name in connection.execute(query).scalars().all():
        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))


def _look_up(connection: Connection, partition: Partition) -> Row[Any] | None:
    query = text(f"SELECT number, generation, rows FROM vector_partitions WHERE {_MINE}")  # noqa: S608
    return connection.execute(query, _names(partition)).one_or_none()


def _begin(connection: Connection, partition: Partition, last: int) -> tuple[int, int] | None:
    """Marks the partition as being changed, by us; None: there is no such account.

    Raises _Overtaken while another service is at it: one that has just said so, and whose turn is not our ``last``.
    """
    query = text(
        "INSERT INTO vector_partitions AS mine (user_id, collection, space) SELECT id, :collection, :space FROM users "
        "WHERE id = :user_id ON CONFLICT (user_id, collection, space) "
        "DO UPDATE SET generation = NULL, turn = mine.turn + 1, since = clock_timestamp() "
        "WHERE mine.generation IS NOT NULL OR mine.turn = :last "
        "OR mine.since < clock_timestamp() - make_interval(secs => :lease) "
        "RETURNING number, turn"
    )
    row = connection.execute(query, {**_names(partition), "last": last, "lease": _LEASE_S}).one_or_none()
    if row is not None:
        return row.number, row.turn
    if _look_up(connection, partition) is None:
        return None
    raise _Overtaken


def _mine(connection: Connection, number: int, turn: int) -> None:
    query = text("UPDATE vector_partitions SET since = clock_timestamp() WHERE number = :number AND turn = :turn")
    if not connection.execute(query, {"number": number, "turn": turn}).rowcount:
        raise _Overtaken


def _delete(connection: Connection, number: int, turn: int, ids: Sequence[str]) -> None:
    _mine(connection, number, turn)
    query = text("DELETE FROM vector_rows WHERE partition = :number AND id = ANY(:ids)")
    connection.execute(query, {"number": number, "ids": list(ids)})


def _insert(connection: Connection, number: int, turn: int, rows: Sequence[Mapping[str, Any]]) -> None:
    _mine(connection, number, turn)
    query = text(
        "INSERT INTO vector_rows (partition, user_id, collection, space, id, content_hash, embedding) VALUES "
        "(:number, :user_id, :collection, :space, :id, :content_hash, CAST(:vector AS vector)) "
        "ON CONFLICT (partition, id) DO UPDATE SET content_hash = EXCLUDED.content_hash, embedding = EXCLUDED.embedding"
    )
    if rows:
        connection.execute(query, list(rows))


def _commit(connection: Connection, number: int, turn: int, generation: int) -> int:
    _mine(connection, number, turn)
    query = text(
        "UPDATE vector_partitions SET generation = :generation, "
        "rows = (SELECT count(*) FROM vector_rows WHERE partition = :number) WHERE number = :number RETURNING rows"
    )
    return int(connection.execute(query, {"number": number, "generation": generation}).scalar_one())


def _rows(
    partition: Partition, number: int, found: Iterable[tuple[str, bytes]], hashes: Mapping[str, str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for id, vector in found:
        try:
            check_vector(partition, vector)
        except AprendizError:
            logger.error("a vector that is not finite or not of length 1 is left out")
            continue
        rows.append({**_names(partition), "number": number, "id": id, "content_hash": hashes[id], "vector": _literal(vector)})
    return rows


def _names(partition: Partition) -> dict[str, str]:
    return {"user_id": partition.user_id, "collection": partition.collection, "space": partition.space}


def _literal(vector: bytes) -> str:
    """As pgvector reads it. Nine digits are all that a 32-bit float has."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return "[" + ",".join(f"{number:.9g}" for number in numbers) + "]"


def _score(distance: float) -> float:
    return round(min(max(-distance, -1.0), 1.0), 6) + 0.0


def _batches(ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
