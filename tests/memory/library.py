"""A library of documents on a real database, with doubles for what is slow or elsewhere: parser, embedder, vector store."""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.core.errors import AprendizError, Unavailable
from app.core.metrics import Metrics
from app.core.records import DocumentRecord
from app.db.chunks import Chunks
from app.db.database import Database
from app.db.documents import DocumentBounds, Documents
from app.db.indexing import Indexing
from app.db.vectors import Vectors
from app.memory.documents import DocumentLibrary
from app.memory.embedder import Kind
from app.memory.indexing import Indexer, Surroundings
from app.memory.parsing.blocks import Block, Parsed
from app.memory.search import Search
from app.memory.vectors.base import Hit, Partition, VectorSource
from app.memory.words import words_of_text


class LineParser:
    """Each line a block. ``hold``: waits for it once the file is read; ``error``: raised instead."""

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        self.error: Exception | None = None
        self.parsed = 0

    async def parse(self, file: Path, *, name: str, on_progress: Callable[[float], None] | None = None) -> Parsed:
        text = await asyncio.to_thread(file.read_text, "utf-8")
        self.parsed += 1
        if on_progress is not None:
            on_progress(0.5)
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        # Headings of the first level: no two lines are joined to one piece.
        blocks = tuple(
            block
            for number, line in enumerate(text.splitlines(), 1)
            for block in (Block(f"Part {number}", "heading", 1, {"line": number}), Block(line, place={"line": number}))
        )
        return Parsed("txt", blocks, len(text))


class HashEmbedder:
    """Words hashed to 16 numbers. ``version``: another one is another space; ``away``: raises."""

    def __init__(self) -> None:
        self.version = "1"
        self.away = False
        self.configured = True
        self.embedded: list[str] = []
        self.hold: asyncio.Event | None = None

    async def space(self) -> str | None:
        if self.away:
            raise Unavailable("The embedder is away.")
        return f"test/hash@{self.version}/16" if self.configured else None

    async def embed(self, texts: Sequence[str], *, kind: Kind, user_id: str) -> list[bytes]:
        if self.hold is not None and kind == "passage":
            await self.hold.wait()
        if self.away:
            raise Unavailable("The embedder is away.")
        if kind == "passage":
            self.embedded += texts
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> bytes:
        sums = [1e-6] * 16
        for word in words_of_text(text):
            sums[hashlib.sha256(f"{self.version}{word}".encode()).digest()[0] % 16] += 1
        norm = math.sqrt(sum(each * each for each in sums))
        return array.array("f", [each / norm for each in sums]).tobytes()


class ExactStore:
    """Reads the partition anew for each search."""

    name = "exact"

    def __init__(self, source: VectorSource) -> None:
        self._source = source
        self.away = False
        self.dropped: list[tuple[str, str | None]] = []
        self.refreshed: list[Partition] = []

    async def open(self) -> None:
        pass

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        if self.away:
            raise Unavailable("The store is away.")
        rows = await self._source.vectors(partition, list(await self._source.ids(partition)))
        hits = [Hit(identifier, _product(vector, other)) for identifier, other in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    async def refresh(self, partition: Partition) -> None:
        self.refreshed.append(partition)

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        self.dropped.append((user_id, collection))

    def status(self) -> Mapping[str, Any]:
        return {}

    async def aclose(self) -> None:
        pass


def _product(one: bytes, other: bytes) -> float:
    return sum(a * b for a, b in zip(array.array("f", one), array.array("f", other), strict=True))


@dataclass
class World:
    """A library and all that it works with."""

    database: Database
    folder: Path
    library: DocumentLibrary
    indexer: Indexer
    parser: LineParser
    embedder: HashEmbedder
    store: ExactStore
    metrics: Metrics
    changed: list[str] = field(default_factory=list)
    busy: bool = False

    async def add(self, user_id: str, text: str, *, name: str = "a.txt", collection: str = "default") -> DocumentRecord:
        return (await self.library.add_bytes(user_id, text.encode(), name=name, collection=collection)).document

    async def until(self, true: Callable[[DocumentRecord], bool], document: DocumentRecord) -> DocumentRecord:
        """Waits until the document is so."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            found = await self.library.get(document.user_id, document.id)
            if true(found):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(found)

    async def indexed(self, document: DocumentRecord) -> DocumentRecord:
        return await self.until(lambda each: each.state in ("ready", "failed"), document)

    async def settled(self) -> None:
        """Waits until everybody has been told of each indexed document, which comes after it is ready."""
        ended = 0.0
        while ended != len(self.changed) or not ended:
            await asyncio.sleep(0.01)
            ended = self.metrics.registry.get_sample_value("aprendiz_documents_indexed_total", {"state": "ready"}) or 0.0

    async def texts(self, user_id: str, query: str, **more: Any) -> list[str]:
        return [each.text for each in (await self.library.search(user_id, query, **more)).passages]


@contextlib.asynccontextmanager
async def world(
    database: Database, folder: Path, *, bounds: DocumentBounds | None = None, start: bool = True
) -> AsyncIterator[World]:
    """A library whose indexer runs, a hundred times as impatient as the real one."""
    parser, embedder, store, metrics = LineParser(), HashEmbedder(), ExactStore(Vectors(database)), Metrics()
    changed: list[str] = []
    made: list[World] = []

    async def note(user_id: str) -> None:
        changed.append(user_id)

    around = Surroundings(folder, busy=lambda: made[0].busy, changed=note, pace=lambda seconds: seconds / 100)
    files = Documents(database)
    indexer = Indexer(Indexing(database), files, parser=parser, embedder=embedder, around=around, metrics=metrics)
    library = DocumentLibrary(
        store=files,
        search=Search(Chunks(database), embedder=embedder, vectors=store),
        indexer=indexer,
        embedder=embedder,
        vectors=store,
        folder=folder,
        most_bytes=1 << 20,
        changed=note,
        bounds=bounds,
    )
    made.append(World(database, folder, library, indexer, parser, embedder, store, metrics, changed))
    if start:
        await indexer.start()
    try:
        yield made[0]
    finally:
        with contextlib.suppress(AprendizError):
            await indexer.aclose()
