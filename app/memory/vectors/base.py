"""The contract of a vector store: it is searched, and follows the database, which is the truth.

Nobody writes into a store. The rows of `app.db` (chunks of documents, kept facts) carry their vectors; each change of them
changes the generation of their partition in the same transaction. A store compares the generation with the one that it has
seen, takes over the difference, and only then answers: what was committed before a search began is found by it, and what was
deleted is not. So a store may lose everything at any time and loses nothing.

A partition is one owner's one collection in the space of one embedder. It is not a filter: no search can name two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Partition:
    """``collection``: of documents, or `app.db.partitions.FACTS`. ``space``: ``name@version/dimensions``, see `Embedder`."""

    user_id: str
    collection: str
    space: str

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return int(self.space.rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class Hit:
    """``id``: of the chunk or fact. ``score``: cosine similarity, -1 to 1."""

    id: str
    score: float


class VectorSource(Protocol):
    """The database, as stores read it (`app.db.vectors.Vectors`)."""

    async def generation(self, user_id: str, collection: str) -> int:
        """Changes with each change there. Read it before `ids`: then what changes meanwhile is noticed the next time."""

    async def generations(self) -> Mapping[tuple[str, str], int]:
        """All of them, by owner and collection; what is not there is 0."""

    async def ids(self, partition: Partition) -> Mapping[str, str]:
        """The content hash by id of everything in the partition that has a vector of its space."""

    async def vectors(self, partition: Partition, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """Those of these ids that are still in the partition, with their vectors: 32-bit little-endian floats of length 1."""


class VectorStore(Protocol):
    """One of ``faiss``, ``chroma``, ``pgvector``. Made by `app.memory.vectors.stores.make_store`."""

    name: str

    async def open(self) -> None:
        """Raises ConfigurationError where what it needs is not installed or cannot be reached; the text says what to do."""

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        """The nearest ``k`` of the partition as the database has it, best first, equal scores by id.

        ``vector`` as in `VectorSource.vectors`. Raises Unavailable where the store does not answer in time.
        """

    async def refresh(self, partition: Partition) -> None:
        """Takes over now what a search would: after a deletion, so that nothing of it is left in memory or on disk."""

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        """Drops what the store has of an owner (of one collection), in all spaces, from memory and disk."""

    def status(self) -> Mapping[str, Any]:
        """For ``/model`` and ``doctor``: ``state``, ``pid``, ``partitions``, ``rows``, ``rss_bytes``, whichever it knows."""

    async def aclose(self) -> None:
        """Ends it. Never raises; may be called twice."""
