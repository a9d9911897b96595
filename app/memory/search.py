"""Search of one owner's chunks: by words (BM25), by meaning (vectors), and both together.

Whatever a rank is made of comes from the owner's own chunks: how often a word occurs among them, how many and how long they
are. So nobody's documents change what another finds, nor in which order, nor with which score; a database's own ranking, over
all rows of its index, would.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from app.core.errors import AprendizError
from app.core.types import Passage
from app.db.chunks import FoundChunk, Size
from app.memory.embedder import Embedder
from app.memory.fusion import Fused, fold, fuse, word_weight
from app.memory.vectors.base import Hit, Partition, VectorStore
from app.memory.words import query_words, scope_of

MOST_TERMS: Final = 16
MOST_HOLDERS: Final = 20_000
"""Chunks looked at for one word; one that stands in more of them tells little."""
CANDIDATES: Final = 200
NEAREST: Final = 60
"""Chunks asked of the vector store in each collection."""
_K1: Final = 1.2
_B: Final = 0.75
_AT_ONCE: Final = 4
VECTORS_S: Final = 10.0
"""Longest wait for the embedder and the vector store together; then words must do."""
_AWAY: Final = "The embedder does not answer now: only words were searched, not meaning."
_NO_EMBEDDER: Final = "No embedder is configured: only words were searched, not meaning."
_STORE_AWAY: Final = "The vector store does not answer now: only words were searched, not meaning."


class ChunkStore(Protocol):
    """What is used of `app.db.chunks.Chunks`."""

    async def holding(
        self, user_id: str, collections: Sequence[str], words: Sequence[str], *, scope: str, most: int
    ) -> dict[str, list[int]]: ...
    async def by_number(self, user_id: str, collections: Sequence[str], numbers: Sequence[int]) -> list[FoundChunk]: ...
    async def by_id(self, user_id: str, collections: Sequence[str], ids: Sequence[str]) -> list[FoundChunk]: ...
    async def size(self, user_id: str, collections: Sequence[str]) -> Size: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, best first. ``notes``: what the caller should know of how it was searched."""

    passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ByWords:
    """Chunks by BM25, best first. ``coverage``: see `app.memory.fusion.word_weight`."""

    chunks: tuple[FoundChunk, ...] = ()
    coverage: float = 0.0


@dataclass(frozen=True, slots=True)
class ByVectors:
    """Ids by cosine similarity, best first; ``note`` says why there are none. ``space``: in which it was searched."""

    ids: tuple[str, ...] = ()
    note: str | None = None
    space: str | None = None


class Search:
    """Hybrid search. ``embedder``, ``vectors``: see their protocols; both may be away, then words alone are searched."""

    def __init__(self, chunks: ChunkStore, *, embedder: Embedder, vectors: VectorStore) -> None:
        self._chunks = chunks
        self._embedder = embedder
        self._vectors = vectors

    async def search(
        self, user_id: str, query: str, *, k: int, collections: Sequence[str], vectors_s: float = VECTORS_S
    ) -> tuple[Found, str | None]:
        """The best ``k`` chunks of the owner in these collections, and the space in which vectors were searched (or None).

        ``vectors_s``: seconds to wait for the embedder and the store; then words alone decide, and a note says so.
        """
        if not collections:
            return Found(), None
        vectors, words = await asyncio.gather(
            self.by_vectors(user_id, query, collections, vectors_s=vectors_s), self.by_words(user_id, query, collections)
        )
        weight = word_weight(words.coverage)
        ranking = fuse(vectors.ids, [each.id for each in words.chunks], words=weight)
        known = await self._texts(user_id, collections, ranking, words.chunks)
        best = await asyncio.to_thread(_folded, ranking, known, k)
        passages = tuple(_passage(known[each.id], each) for each in best)
        return Found(passages, () if vectors.note is None else (vectors.note,)), vectors.space

    async def by_words(self, user_id: str, query: str, collections: Sequence[str]) -> ByWords:
        """Chunks that hold words of the question, by BM25 over the owner's chunks in these collections."""
        terms = telling(query_words(query))
        if not terms:
            return ByWords()
        scope = scope_of(user_id, collections[0]) if len(collections) == 1 else scope_of(user_id)
        holding = await self._chunks.holding(user_id, collections, terms, scope=scope, most=MOST_HOLDERS)
        size = await self._chunks.size(user_id, collections)
        rarity = {term: _idf(size.chunks, len(holding.get(term, ()))) for term in terms}
        numbers = await asyncio.to_thread(_candidates, holding, rarity)
        found = await self._chunks.by_number(user_id, collections, numbers)
        return await asyncio.to_thread(_ranked, found, rarity, size)

    async def by_vectors(
        self, user_id: str, query: str, collections: Sequence[str], *, vectors_s: float = VECTORS_S
    ) -> ByVectors:
        """The chunks nearest to the question, of all these collections together. Never raises an error of ours."""
        until = asyncio.get_running_loop().time() + vectors_s
        try:
            async with asyncio.timeout_at(until):
                space = await self._embedder.space()
                if space is None:
                    return ByVectors(note=_NO_EMBEDDER)
                (vector,) = await self._embedder.embed([query], kind="query", user_id=user_id)
        except (AprendizError, TimeoutError):
            return ByVectors(note=_AWAY)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def nearest(collection: str) -> list[Hit]:
            async with gate:
                return await self._vectors.search(Partition(user_id, collection, space), vector, NEAREST)

        try:
            async with asyncio.timeout_at(until):
                parts = await asyncio.gather(*(nearest(each) for each in collections))
        except (AprendizError, TimeoutError):
            return ByVectors(note=_STORE_AWAY, space=space)
        hits = sorted((hit for part in parts for hit in part), key=lambda hit: (-hit.score, hit.id))
        return ByVectors(tuple(hit.id for hit in hits[:NEAREST]), space=space)

    async def _texts(
        self, user_id: str, collections: Sequence[str], ranking: Sequence[Fused], known: Sequence[FoundChunk]
    ) -> dict[str, FoundChunk]:
        """The chunks of a ranking, out of the database: one whose row is gone, or is another's, is not there."""
        found = {each.id: each for each in known}
        missing = [each.id for each in ranking if each.id not in found]
        if missing:
            found |= {each.id: each for each in await self._chunks.by_id(user_id, collections, missing)}
        return found


def telling(words: Sequence[str]) -> list[str]:
    """The words of a question that are searched for: all, or of many the `MOST_TERMS` longest, in their order."""
    if len(words) <= MOST_TERMS:
        return list(words)
    longest = set(sorted(range(len(words)), key=lambda at: (-len(words[at]), at))[:MOST_TERMS])
    return [word for at, word in enumerate(words) if at in longest]


def _idf(chunks: int, holders: int) -> float:
    """How much a word tells: much where few chunks hold it."""
    return math.log(1 + (max(chunks - holders, 0) + 0.5) / (holders + 0.5))


def _candidates(holding: Mapping[str, Sequence[int]], rarity: Mapping[str, float]) -> list[int]:
    """The chunks that hold most of what tells: a bound on what BM25 gets to see. Among equals the oldest."""
    sums: dict[int, float] = {}
    for term, numbers in holding.items():
        weight = rarity[term]
        for number in numbers:
            sums[number] = sums.get(number, 0.0) + weight
    return sorted(sums, key=lambda number: (-sums[number], number))[:CANDIDATES]


def _ranked(found: Sequence[FoundChunk], rarity: Mapping[str, float], size: Size) -> ByWords:
    """BM25 [Robertson, Zaragoza 2009]; a chunk's length is counted in characters, for those are known of the whole."""
    average = max(size.characters / max(size.chunks, 1), 1.0)
    scored: list[tuple[float, FoundChunk]] = []
    coverage, whole = 0.0, sum(rarity.values())
    for each in found:
        counts = Counter(word for word in each.words.split() if word in rarity)
        norm = _K1 * (1 - _B + _B * len(each.text) / average)
        score = sum(rarity[word] * count * (_K1 + 1) / (count + norm) for word, count in counts.items())
        scored.append((score, each))
        coverage = max(coverage, sum(rarity[word] for word in counts) / whole)
    scored.sort(key=lambda item: (-item[0], item[1].number))
    return ByWords(tuple(each for _, each in scored), coverage)


def _folded(ranking: Sequence[Fused], known: Mapping[str, FoundChunk], k: int) -> list[Fused]:
    texts = {each.id: (each.document_id, frozenset(each.words.split())) for each in known.values()}
    return fold(ranking, texts, k=k)


def _passage(chunk: FoundChunk, fused: Fused) -> Passage:
    return Passage(
        id=chunk.id,
        document_id=chunk.document_id,
        name=chunk.name,
        collection=chunk.collection,
        text=chunk.text,
        score=fused.score,
        place=chunk.place,
    )
