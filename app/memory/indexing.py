"""The indexer: documents that wait become chunks that are found, one document at a time, in the background.

Parse (in a child) → chunk → fold to words → embed → write, in batches. New chunks are made beside the old ones and take their
place in one transaction. Several processes share the work by claims that run out: what a killed one left goes on elsewhere, and
what it had embedded is not embedded again. Without an embedder a document is ready by its words alone, and is embedded by
itself when the embedder comes, or another one does. It serves nobody: while people are being served it waits a little.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from app.core.errors import AprendizError, InvalidRequest, StorageUnavailable, TooManyRequests
from app.core.metrics import Metrics
from app.core.records import DocumentRecord
from app.db.indexing import STAGED, Indexing
from app.memory.chunking import chunk
from app.memory.embedder import Embedder
from app.memory.folding import folded, record_of_piece
from app.memory.parsing.blocks import Parsed
from app.memory.words import scope_of

logger = logging.getLogger(__name__)

_BATCH: Final = 32
_LEASE: Final = timedelta(seconds=30)
_BEAT_S: Final = 8.0
_TIDY_S: Final = 60.0
_POLL_S: Final = 3.0
_EMBED_S: Final = 120.0
_BACK_OFF_S: Final = (5.0, 300.0)
_STORAGE_S: Final = 30.0
_AGAIN_S: Final = 60.0
"""Before the same document is tried again; others come first."""
_YIELD_S: Final = 0.25
_MOST_YIELDS: Final = 8
"""Longest wait for people who are being served, before each batch: 2 seconds."""
_PARSED_AT: Final = 0.2
_INTERNAL: Final = "The document could not be indexed: an error inside the service, which its log tells. Index it again later."


class FileParser(Protocol):
    """What is used of `app.memory.parsing.parser.Parser`."""

    async def parse(self, file: Path, *, name: str, on_progress: Callable[[float], None] | None = None) -> Parsed: ...


class Files(Protocol):
    """What is used of `app.db.documents.Documents`."""

    def pieces(self, document_id: str, *, user_id: str) -> AsyncGenerator[bytes, None]: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the indexer is told of the service around it.

    Args:
        runtime_dir: a private folder, for the file that is being parsed.
        busy: whether people are being served now.
        changed: told the owner when what can be found of theirs has changed.
        pace: turns seconds of waiting into others; tests wait less.
    """

    runtime_dir: Path
    busy: Callable[[], bool] = lambda: False
    changed: Callable[[str], Awaitable[None]] | None = None
    pace: Callable[[float], float] = field(default=lambda seconds: seconds)


class _Lost(Exception):
    """The document is gone, or somebody else indexes it now."""


class Indexer:
    """Works off what waits. One task; `start` and `aclose` belong to one event loop."""

    def __init__(
        self,
        store: Indexing,
        files: Files,
        *,
        parser: FileParser,
        embedder: Embedder,
        around: Surroundings,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._parser = parser
        self._embedder = embedder
        self._around = around
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._after = {"index": "", "embed": ""}
        self._tidy_at = 0.0
        self._embed_at = 0.0
        self._back_off = _BACK_OFF_S[0]

    async def start(self) -> None:
        """Begins, with what an earlier process left."""
        self._worker = asyncio.create_task(self._work(), name="indexer")

    def wake(self) -> None:
        """Something waits: look now."""
        self._wake.set()

    async def aclose(self) -> None:
        """Stops; what is unfinished goes on at the next start, or in another process. May be called twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                worked = await self._step()
            except StorageUnavailable as error:
                logger.warning("indexing waits for storage: %s", error.detail)
                await self._rest(_STORAGE_S)
                continue
            except AprendizError as error:  # the database is closing, say
                logger.warning("indexing waits: %s", error.detail)
                worked = False
            except Exception:
                logger.exception("The indexer failed; it goes on.")
                await self._rest(_STORAGE_S)
                continue
            if not worked:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._around.pace(_POLL_S)):
                        await self._wake.wait()

    async def _step(self) -> bool:
        """Works one document off. Returns whether there was one."""
        now = datetime.now(UTC)
        if time.monotonic() >= self._tidy_at:
            await self._store.drop_abandoned(now)
            self._tidy_at = time.monotonic() + _TIDY_S
        if self._metrics is not None:
            self._metrics.documents_waiting.set(await self._store.waiting())
        document = await self._store.claim(now=now, until=now + _LEASE, after=self._after["index"])
        if document is not None:
            self._after["index"] = document.user_id
            await self._held(document, _Course.index)
            return True
        space = await self._space() if await self._store.any_ready() else None
        if space is None:
            return False
        document = await self._store.claim_to_embed(space, now=now, until=now + _LEASE, after=self._after["embed"])
        if document is None:
            return False
        self._after["embed"] = document.user_id
        await self._held(document, _Course.embed_again)
        return True

    async def _space(self) -> str | None:
        """The embedder's space; None: it is not configured, or away, or was a moment ago."""
        if time.monotonic() < self._embed_at:
            return None
        try:
            async with asyncio.timeout(_EMBED_S):
                return await self._embedder.space()
        except (AprendizError, TimeoutError) as error:
            self._embedder_is_away(error)
            return None

    async def _held(self, document: DocumentRecord, work: Callable[[_Course, str | None], Awaitable[None]]) -> None:
        """Does the work with a claim that is kept alive; what fails is noted in the document."""
        # The claim is kept alive first: an embedder may take longer to say its space than a claim lasts.
        async with _Course(self, document) as course:
            began = time.monotonic()
            try:
                await work(course, await self._space())
            except _Lost:
                logger.info("a document was deleted, or taken over, while it was being indexed")
            except asyncio.CancelledError:
                await course.put_back(0)
                raise
            except StorageUnavailable:
                await course.put_back(_STORAGE_S)
                raise
            except InvalidRequest as error:
                await course.fail(error.detail)
            except AprendizError as error:
                logger.warning("a document waits to be indexed: %s", error.detail)
                await course.put_back(_BACK_OFF_S[0])
            except Exception:
                logger.exception("a document could not be indexed")
                await course.fail(_INTERNAL)
            if self._metrics is not None:
                self._metrics.document_seconds.inc(time.monotonic() - began)

    def _embedder_is_away(self, error: BaseException) -> None:
        detail = error.detail if isinstance(error, AprendizError) else "it does not answer in time"
        told = self._back_off > _BACK_OFF_S[0]
        level = logging.DEBUG if told else logging.WARNING
        logger.log(level, "the embedder is away, documents are found by words alone: %s", detail)
        self._embed_at = time.monotonic() + self._around.pace(self._back_off)
        self._back_off = min(self._back_off * 2, _BACK_OFF_S[1])

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(self._around.pace(seconds))

    async def _give_way(self) -> None:
        """Lets people who are being served go first, for a while."""
        for _ in range(_MOST_YIELDS):
            if not self._around.busy():
                return
            await self._rest(_YIELD_S)

    async def _vectors(self, user_id: str, space: str | None, texts: Sequence[tuple[str, str]]) -> dict[str, bytes]:
        """Vectors by content hash, of ``(hash, text)``: those that are there already, else made now; none while it is away."""
        if space is None or time.monotonic() < self._embed_at:
            return {}
        wanted = dict(texts)
        found = await self._store.known(user_id, space, list(wanted))
        missing = [each for each in wanted if each not in found]
        if not missing:
            return found
        try:
            async with asyncio.timeout(_EMBED_S):
                made = await self._embedder.embed([wanted[each] for each in missing], kind="passage", user_id=user_id)
                if await self._embedder.space() != space:  # another one came meanwhile: nobody knows which of them made these
                    return found
        except (InvalidRequest, TooManyRequests) as error:  # it is there for others: these texts, or their owner's budget
            logger.info("texts of one document are not embedded now: %s", error.detail)
            return found
        except (AprendizError, TimeoutError) as error:
            self._embedder_is_away(error)
            return found
        self._back_off = _BACK_OFF_S[0]
        return found | dict(zip(missing, made, strict=True))


class _Course:
    """The work on one claimed document. Its writes go one after the other, each with the claim that the last one gave."""

    def __init__(self, indexer: Indexer, document: DocumentRecord) -> None:
        self._of = indexer
        self._store = indexer._store
        self.document = document
        self._parsed: float | None = None
        self._lock = asyncio.Lock()
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Course:
        self._beat = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *failure: object) -> None:
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.wait([self._beat])

    async def index(self, space: str | None) -> None:
        """The whole way from the file to chunks that are found."""
        parsed = await self._parse()
        self._parsed = None
        await self._write(format=parsed.format, progress=_PARSED_AT)
        count, whole = await self._stage(parsed, space)
        now = datetime.now(UTC)
        ended: dict[str, Any] = {
            "state": "ready",
            "progress": 1.0,
            "characters": parsed.characters,
            "notes": parsed.notes,
            "error": None,
            "space": space if whole else None,
            "updated_at": now,
            "claimed_until": None,
        }
        await self._through(lambda held: self._store.exchange(held, count, **ended))
        await self._store.sweep(self.document)
        if self._of._metrics is not None:
            self._of._metrics.documents_indexed.labels("ready").inc()
            self._of._metrics.document_chunks.inc(count)
        await self._changed()

    async def embed_again(self, space: str | None) -> None:
        """Gives the chunks of a document that is ready the vectors of the embedder that there is now."""
        done, document = 0, self.document
        while space is not None:
            batch = await self._store.unembedded(document, space, limit=_BATCH)
            if not batch:
                break
            await self._of._give_way()
            made = await self._of._vectors(document.user_id, space, [(each.content_hash, each.text) for each in batch])
            vectors = {each.number: made[each.content_hash] for each in batch if each.content_hash in made}
            if len(vectors) < len(batch):
                await self.put_back(_AGAIN_S)
                return
            done += len(batch)
            step = {"progress": min(0.99, done / max(document.chunks, 1))}
            await self._through(lambda held: self._store.embed(held, space, vectors, **self._next(step)))  # noqa: B023
        await self._write(space=space, progress=1.0, claimed_until=None, updated_at=datetime.now(UTC))
        await self._changed()

    async def fail(self, why: str) -> None:
        """Notes why it cannot be indexed. What an earlier index found of it is found on; one that is ready stays so."""
        if self.document.state == "ready":
            await self.put_back(_BACK_OFF_S[1])
            return
        if self._of._metrics is not None:
            self._of._metrics.documents_indexed.labels("failed").inc()
        with contextlib.suppress(_Lost, StorageUnavailable):
            await self._write()  # else somebody else may be making these chunks now
            await self._store.sweep(self.document, STAGED)
            await self._write(state="failed", error=why[:1000], progress=1.0, claimed_until=None, updated_at=datetime.now(UTC))

    async def put_back(self, seconds: float) -> None:
        """Lets it wait for another try. Where that cannot be written either, the claim runs out by itself."""
        with contextlib.suppress(_Lost, AprendizError):
            again = datetime.now(UTC) + timedelta(seconds=self._of._around.pace(seconds))
            await self._write(claimed_until=again, **({"progress": 1.0} if self.document.state == "ready" else {}))

    async def _parse(self) -> Parsed:
        document = self.document
        with tempfile.TemporaryDirectory(prefix="document-", dir=self._of._around.runtime_dir) as folder:
            file = Path(folder) / "file"
            try:
                with file.open("wb") as out:
                    stored = self._of._files.pieces(document.id, user_id=document.user_id)
                    async with contextlib.aclosing(stored) as pieces:
                        async for piece in pieces:
                            await asyncio.to_thread(out.write, piece)
            except OSError as error:
                raise StorageUnavailable("There is no space to unpack a document.") from error
            if file.stat().st_size != document.bytes:
                raise InvalidRequest("The stored file is not whole. Delete the document and upload it again.")
            return await self._of._parser.parse(file, name=document.name, on_progress=self._note)

    def _note(self, share: float) -> None:
        self._parsed = min(1.0, max(0.0, share))

    async def _stage(self, parsed: Parsed, space: str | None) -> tuple[int, bool]:
        """Writes the chunks beside the old ones. Returns how many, and whether all have vectors of ``space``."""
        document = self.document
        pieces = chunk(parsed.blocks)
        scope = scope_of(document.user_id, document.collection)
        count, written, whole = 0, 0, space is not None
        while batch := await asyncio.to_thread(folded, pieces, _BATCH):
            await self._of._give_way()
            vectors = await self._of._vectors(document.user_id, space, [(each.hash, each.text) for each in batch])
            rows = [record_of_piece(document, count + at, each, space, vectors.get(each.hash)) for at, each in enumerate(batch)]
            whole = whole and all(each.vector is not None for each in rows)
            count += len(batch)
            written += sum(len(each.text) for each in batch)
            share = min(1.0, written / max(parsed.characters, 1))
            step = {"progress": round(_PARSED_AT + (0.99 - _PARSED_AT) * share, 4)}
            await self._through(lambda held: self._store.stage(held, rows, scope, **self._next(step)))  # noqa: B023
        return count, whole

    async def _keep(self) -> None:
        """Keeps the claim alive while parsing and embedding take their time."""
        while True:
            await asyncio.sleep(_BEAT_S)
            with contextlib.suppress(_Lost, AprendizError):
                await self._write(**({} if self._parsed is None else {"progress": round(_PARSED_AT * self._parsed, 4)}))

    async def _write(self, **changes: Any) -> None:
        await self._through(lambda held: self._store.hold(held, **self._next(changes)))

    async def _through(self, write: Callable[[DocumentRecord], Awaitable[DocumentRecord | None]]) -> None:
        async with self._lock:
            held = await write(self.document)
            if held is None:
                raise _Lost
            self.document = held

    def _next(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {"claimed_until": datetime.now(UTC) + _LEASE, **changes}

    async def _changed(self) -> None:
        if self._of._around.changed is not None:
            await self._of._around.changed(self.document.user_id)
