"""The documents of users: taken in, listed, indexed again, deleted, searched. Each call is for one owner.

The database holds everything: the file, the chunks, their vectors. What is found is `app.memory.search`, how a file becomes
chunks `app.memory.indexing`. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from app.core.errors import AprendizError, InvalidRequest, NotFound, TooManyRequests
from app.core.ids import is_uuid7, uuid7
from app.core.records import DocumentRecord
from app.db.documents import PIECE_BYTES, Collection, DocumentBounds, Documents
from app.memory.embedder import Embedder
from app.memory.parsing.names import check_collection, display_name
from app.memory.search import VECTORS_S, Found, Search
from app.memory.uploads import Upload
from app.memory.vectors.base import Partition, VectorStore

DEFAULT_COLLECTION: Final = "default"
MOST_HITS: Final = 50
MOST_QUERY: Final = 8000
"""Characters of a question that are searched for: of a longer one, its end."""
_NONE: Final = "There is no such document."
_UPLOADS_AT_ONCE: Final = 8
_STORING: Final = timedelta(minutes=15)
_REFRESH_S: Final = 5.0
_DELETE_BATCH: Final = 50


class Wakes(Protocol):
    """What is used of `app.memory.indexing.Indexer`."""

    def wake(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Added:
    """What became of an upload. ``new``: False where the same bytes were in the collection already."""

    document: DocumentRecord
    new: bool


class DocumentLibrary:
    """What routes, recall and commands use of documents.

    Args:
        store: the repository.
        search: of the same database.
        indexer: is woken when something waits.
        embedder, vectors: to take what was deleted out of the store at once.
        folder: where uploads lie while they come.
        most_bytes: of one document.
        changed: told the owner when something of theirs was deleted or changed.
    """

    def __init__(
        self,
        *,
        store: Documents,
        search: Search,
        indexer: Wakes,
        embedder: Embedder,
        vectors: VectorStore,
        folder: Path,
        most_bytes: int,
        changed: Callable[[str], Awaitable[None]] | None = None,
        bounds: DocumentBounds | None = None,
    ) -> None:
        self._store = store
        self._search = search
        self._indexer = indexer
        self._embedder = embedder
        self._vectors = vectors
        self._folder = folder
        self._most_bytes = most_bytes
        self._changed = changed
        self._bounds = bounds or DocumentBounds()
        self._coming: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def upload(self, user_id: str) -> AsyncGenerator[Upload, None]:
        """A place for a file that is coming. Raises TooManyRequests where too many of the user's are; StorageFull."""
        if self._coming.get(user_id, 0) >= _UPLOADS_AT_ONCE:
            raise TooManyRequests(f"{_UPLOADS_AT_ONCE} of your uploads are under way. Wait for one of them.", retry_after=2)
        self._coming[user_id] = self._coming.get(user_id, 0) + 1
        try:
            async with Upload(self._folder, most=self._most_bytes) as upload:
                yield upload
        finally:
            self._coming[user_id] -= 1
            if not self._coming[user_id]:
                del self._coming[user_id]

    async def add(self, user_id: str, *, name: str, collection: str, upload: Upload) -> Added:
        """Stores an upload as a document and has it indexed. The same bytes again in the collection add nothing.

        Raises InvalidRequest (an empty file, a bad name of a collection), Conflict and TooManyRequests where the user has as
        much as one may, StorageUnavailable.
        """
        check_collection(collection)
        if not upload.bytes:
            raise InvalidRequest("The file is empty.", field="file")
        now = datetime.now(UTC)
        document = DocumentRecord(
            id=uuid7(),
            user_id=user_id,
            collection=collection,
            name=display_name(name),
            format="",
            bytes=upload.bytes,
            sha256=upload.sha256,
            state="storing",
            created_at=now,
            updated_at=now,
            claimed_until=now + _STORING,
        )
        twin = await self._store.begin(document, self._bounds)
        if twin is not None:
            return Added(twin, new=False)
        try:
            async with contextlib.aclosing(upload.pieces(PIECE_BYTES)) as pieces:
                position = 0
                async for piece in pieces:
                    await self._store.put(document, position, piece)
                    position += 1
            stored = await self._store.finish(document)
        except BaseException:
            with contextlib.suppress(AprendizError):
                await self._store.abandon(document)
            raise
        self._indexer.wake()
        return Added(stored, new=stored.id == document.id)

    async def add_bytes(self, user_id: str, content: bytes, *, name: str, collection: str = DEFAULT_COLLECTION) -> Added:
        """As `add`, of bytes that are here."""
        async with self.upload(user_id) as upload:
            await upload.write(content)
            return await self.add(user_id, name=name, collection=collection, upload=upload)

    async def get(self, user_id: str, document_id: str) -> DocumentRecord:
        """One document. Raises NotFound."""
        found = await self._store.get(document_id, user_id=user_id) if is_uuid7(document_id) else None
        if found is None:
            raise NotFound(_NONE)
        return found

    async def list(
        self, user_id: str, *, collection: str | None = None, limit: int = 100, after: str | None = None
    ) -> Sequence[DocumentRecord]:
        """The user's documents, newest first."""
        return await self._store.list(user_id, collection=collection, limit=limit, after=after)

    async def collections(self, user_id: str) -> Sequence[Collection]:
        """The user's collections, by name."""
        return await self._store.collections(user_id)

    async def file(self, user_id: str, document: DocumentRecord) -> AsyncGenerator[bytes, None]:
        """The bytes as they came."""
        async with contextlib.aclosing(self._store.pieces(document.id, user_id=user_id)) as pieces:
            async for piece in pieces:
                yield piece

    async def reindex(self, user_id: str, document_id: str) -> DocumentRecord:
        """Has a document read and indexed again; until then it is found as it is. Raises NotFound."""
        found = None
        if is_uuid7(document_id):
            found = await self._store.requeue(document_id, user_id=user_id, now=datetime.now(UTC))
        if found is None:
            raise NotFound(_NONE)
        self._indexer.wake()
        return found

    async def delete(self, user_id: str, document_id: str) -> None:
        """Deletes a document with all that was made of it. Raises NotFound."""
        gone = await self._store.delete(document_id, user_id=user_id) if is_uuid7(document_id) else None
        if gone is None:
            raise NotFound(_NONE)
        await self._forgotten(user_id, gone.collection)

    async def delete_collection(self, user_id: str, collection: str) -> int:
        """Deletes a collection with all its documents. Returns how many; raises NotFound where there is none of that name."""
        count = 0
        while ids := await self._store.some_of(user_id, collection, limit=_DELETE_BATCH):
            count += await self._store.delete_those(user_id, collection, ids)
        if not count:
            raise NotFound("There is no such collection.")
        await self._forgotten(user_id, collection)
        return count

    async def search(
        self, user_id: str, query: str, *, k: int = 8, collections: Sequence[str] = (), vectors_s: float = VECTORS_S
    ) -> Found:
        """The user's chunks that answer ``query`` best; ``collections``: of these alone. What is not there is not found.

        ``vectors_s``: see `Search.search`.
        """
        names = [each.name for each in await self._store.collections(user_id)]
        wanted = [each for each in names if not collections or each in collections]
        k = max(1, min(k, MOST_HITS))
        found, space = await self._search.search(user_id, query[-MOST_QUERY:], k=k, collections=wanted, vectors_s=vectors_s)
        if space is None or not wanted:
            return found
        late = await self._store.not_embedded(user_id, wanted, space)
        if not late:
            return found
        note = f"{late} of the documents searched are found by their words alone until they are embedded."
        return replace(found, notes=(*found.notes, note))

    async def _forgotten(self, user_id: str, collection: str) -> None:
        """Takes what was deleted out of memory too: out of the vector store, and out of answers that are kept."""
        if self._changed is not None:
            await self._changed(user_id)
        # The store follows the database with the next search at the latest; here only so that nothing is left till then.
        with contextlib.suppress(AprendizError, TimeoutError):
            async with asyncio.timeout(_REFRESH_S):
                if all(each.name != collection for each in await self._store.collections(user_id)):
                    await self._vectors.forget(user_id, collection)
                elif (space := await self._embedder.space()) is not None:
                    await self._vectors.refresh(Partition(user_id, collection, space))
