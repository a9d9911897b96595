"""A store in a child process that follows the database: FAISS and Chroma.

The child says when what it has of a partition is too old. Then all that shall be there is compared by id and content hash, the
 difference is sent, and the search is made again. One comparison a partition at a time; others wait for it.
"""

from __future__ import annotations

import array
import asyncio
import logging
import math
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from app.core.errors import AprendizError, ConfigurationError, InvalidRequest, Unavailable
from app.memory.vectors import wire
from app.memory.vectors.base import Hit, Partition, VectorSource
from app.memory.vectors.process import ChildGone, StoreProcess

MAX_K: Final = 1000
MAX_DIMENSIONS: Final = 8192
_BATCH = 1000
_ATTEMPTS = 4
_NORM_TOLERANCE = 0.01

logger = logging.getLogger(__name__)


class FollowingStore:
    """A `VectorStore` over a `StoreProcess`.

    Args:
        search_s: longest time for a search that needs no comparison.
        step_s: longest time for one step of a comparison.
    """

    def __init__(
        self, name: str, source: VectorSource, process: StoreProcess, *, search_s: float = 10, step_s: float = 60
    ) -> None:
        self.name = name
        self._source = source
        self._process = process
        self._search_s, self._step_s = search_s, step_s
        self._locks: weakref.WeakValueDictionary[wire.Key, asyncio.Lock] = weakref.WeakValueDictionary()
        self._counts: wire.Counts | None = None

    async def open(self) -> None:
        """Nothing is started before it is needed."""

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """See `VectorStore.search`. Raises InvalidRequest for a vector of another length, not finite or not of length 1."""
        check_vector(partition, vector)
        k = min(max(k, 1), MAX_K)
        key = wire.key_of(partition)
        generation = await self._source.generation(partition.user_id, partition.collection)
        for _ in range(_ATTEMPTS):
            with suppress(ChildGone):  # it starts again with the next call
                found = await self._ask(wire.Search(key, generation, k, vector), self._search_s)
                if isinstance(found, wire.Found):
                    return [Hit(id, score) for id, score in found.hits]
                await self._follow(partition, key, generation)
        raise Unavailable("The search for vectors keeps failing. Try again in a moment.", retry_after=2)

    async def refresh(self, partition: Partition) -> None:
        """See `VectorStore.refresh`."""
        check_space(partition)
        key = wire.key_of(partition)
        for _ in range(_ATTEMPTS):
            with suppress(ChildGone):
                await self._follow(partition, key, None)
                if isinstance(await self._ask(wire.Purge(key), self._step_s), wire.Stale):
                    await self._follow(partition, key, None)
                return
        raise Unavailable("The index of vectors could not be brought up to date. Try again in a moment.", retry_after=2)

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """See `VectorStore.forget`."""
        request = wire.Forget(wire.user_hash(user_id), None if collection is None else wire.collection_hash(collection))
        for _ in range(_ATTEMPTS):
            with suppress(ChildGone):
                await self._ask(request, self._step_s)
                return
        raise Unavailable("The index of vectors could not be removed. Try again in a moment.", retry_after=2)

    def status(self) -> Mapping[str, Any]:
        """See `VectorStore.status`; counts are those of the last `measure`."""
        process = self._process
        state = "ready" if process.pid is not None else "failed" if process.error is not None else "idle"
        found: dict[str, Any] = {"store": self.name, "state": state, "pid": process.pid, "rss_bytes": process.rss_bytes()}
        if process.error is not None:
            found["error"] = process.error
        if self._counts is not None:
            found |= {"partitions": self._counts.partitions, "rows": self._counts.rows}
        return found

    async def measure(self) -> wire.Counts:
        """Asks the child what it holds. Raises Unavailable, ChildGone."""
        found = await self._ask(wire.Stats(), self._step_s)
        assert isinstance(found, wire.Counts)  # noqa: S101 - what the protocol says
        self._counts = found
        return found

    async def aclose(self) -> None:
        """See `VectorStore.aclose`."""
        await self._process.aclose()

    async def _follow(self, partition: Partition, key: wire.Key, wanted: int | None) -> None:
        """Takes over what the database has. ``wanted``: enough where somebody else brought it there meanwhile."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            generation = await self._source.generation(partition.user_id, partition.collection)
            if wanted is not None and await self._has(key, wanted):
                return
            rows = await self._source.ids(partition)
            missing = await self._ask(wire.Compare(key, list(rows.items())), self._step_s)
            if isinstance(missing, wire.Missing):
                for start in range(0, len(missing.ids), _BATCH):
                    await self._put(partition, key, missing.ids[start : start + _BATCH], rows)
            await self._ask(wire.Commit(key, generation), self._step_s)

    async def _has(self, key: wire.Key, generation: int) -> bool:
        """Whether the child is there already: a search for nothing."""
        return isinstance(await self._ask(wire.Search(key, generation, 0, b""), self._search_s), wire.Found)

    async def _put(self, partition: Partition, key: wire.Key, ids: list[str], hashes: Mapping[str, str]) -> None:
        found = await self._source.vectors(partition, ids)
        size = 4 * partition.dimensions
        rows = [(id, hashes[id], vector) for id, vector in found if len(vector) == size]
        if len(rows) < len(found):
            logger.error("vectors of a wrong length are left out", extra={"data": {"count": len(found) - len(rows)}})
        await self._ask(wire.Put(key, rows), self._step_s)

    async def _ready(self) -> None:
        """Waits for what must be done before the child may run."""

    async def _ask(self, request: wire.Request, timeout_s: float) -> wire.Reply:
        await self._ready()
        reply = await self._process.call(request, timeout_s=timeout_s)
        if isinstance(reply, wire.Failed):
            kind: type[AprendizError] = ConfigurationError if reply.configuration else Unavailable
            raise kind(reply.detail)
        return reply


def check_space(partition: Partition) -> None:
    """Raises InvalidRequest where the partition's space has no usable length of vectors."""
    try:
        dimensions = partition.dimensions
    except ValueError:
        dimensions = 0
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise InvalidRequest(f"The space of the vectors must end in their length, 1 to {MAX_DIMENSIONS}.")


def check_vector(partition: Partition, vector: bytes) -> None:
    """Raises InvalidRequest unless ``vector`` is a finite one of length 1 in the partition's space."""
    check_space(partition)
    if len(vector) != 4 * partition.dimensions:
        raise InvalidRequest(f"The vector must hold {partition.dimensions} numbers of 4 bytes.")
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    norm = math.sqrt(math.fsum(number * number for number in numbers))
    if not abs(norm - 1) <= _NORM_TOLERANCE:  # not: a NaN compares false
        raise InvalidRequest("The vector must be finite and of length 1.")
