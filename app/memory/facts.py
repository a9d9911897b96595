"""Facts of a user: proposed from what they state, kept when they agree, recalled where they matter, gone when they say so.

Recall ranks what is kept by relevance times age. Relevance: cosine similarity beyond what any two sentences have, or shared
words, whichever says more; while there is no vector, words alone. What somebody is called and how they want to be answered is
recalled always. Proposals are never recalled, and only a user's own message proposes. How facts get into a prompt is decided in
`app.models`; no model is asked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import operator
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from app.core.errors import AprendizError, NotFound
from app.core.ids import is_uuid7, uuid7
from app.core.records import FactRecord, FactState
from app.core.types import RecalledFact
from app.db.facts import Facts, hash_of
from app.db.partitions import FACTS
from app.memory.embedder import Embedder
from app.memory.stating import is_standing, stated
from app.memory.vectors.base import Partition, VectorStore
from app.memory.words import query_words

logger = logging.getLogger(__name__)

FLOOR: Final = 0.2
"""Relevance below which a fact is not shown. A line too many is cheaper than one that is missing; what it finds of what belongs
stands in doc/memory.md."""
HALF_LIFE_DAYS: Final = 90.0
"""After so long without being recalled or changed, a fact counts half. Age orders facts; it hides none."""
_EXACT: Final = 64
"""So many vectors are compared here and now; more are searched in the store."""
_RECALL_S: Final = 0.8
"""Longest wait for the vector of a question; then words must do."""
_REFRESH_S: Final = 10.0
_FLUSH_S: Final = 5.0
_RETRY_S: Final = 30.0
_EXPIRE_S: Final = 3600.0
_BATCH: Final = 32
_MOST_USERS: Final = 10_000
_USUAL: Final = (
    "My car has a flat tyre.",
    "I collect old stamps.",
    "Mi vecino pinta la valla de verde.",
    "The library closes at noon on Fridays.",
    "Ayer compré tres macetas para el balcón.",
    "My grandfather built wooden boats.",
    "El ascensor de mi edificio es muy lento.",
    "I once saw a whale near the coast.",
    "Turn the volume down before the concert.",
    "La impresora se quedó sin papel.",
    "How many moons does Jupiter have?",
    "Corrige la ortografía de este párrafo.",
    "What does this error message mean?",
    "Dame tres títulos para un relato corto.",
    "The museum sells tickets at the door.",
    "Explícame cómo funciona un préstamo.",
)
"""Sentences of all kinds. Embedders find any two sentences somewhat similar (some 0.1, others 0.8), and some sentences to all
others: with the mean of these taken from both sides, what is left is what two have in common beyond that."""
_LIGHT: Final = frozenset(
    """m ve d s t live work prefer like love hate name call called use want need know tell good best new day time year make
    vivo trabajo prefiero gusta gustan encanta odio nombre llamo llama tengo uso quiero necesito saber mejor nuevo dia ano hacer
    puedo puede alguna algun favorito favorita favourite favorite""".split()  # noqa: SIM905  # a list that a person can read
)
"""Words that many facts have and that tell nothing about one."""


@dataclass(frozen=True, slots=True)
class _Usual:
    """The mean of `_USUAL` in a space, as queries and as passages."""

    space: str
    query: array[float]
    passage: array[float]

    def similarity(self, query: array[float], passage: array[float]) -> float:
        """The cosine of a query, less its mean already, and a passage, less its own."""
        rest = array("f", map(operator.sub, passage, self.passage))
        length = math.sqrt(_dot(query, query) * _dot(rest, rest))
        return _dot(query, rest) / length if length else 0.0


class FactMemory:
    """All users' facts.

    Args:
        store: the repository.
        vectors: where the vectors of kept facts are searched.
        embedder: makes them.
        forget_answers: drops the cached answers of a user.
        now: the time, in UTC.
        retry_s: seconds before another try where the embedder or the store is away.
    """

    def __init__(
        self,
        store: Facts,
        vectors: VectorStore,
        embedder: Embedder,
        *,
        forget_answers: Callable[[str], Awaitable[None]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        retry_s: float = _RETRY_S,
    ) -> None:
        self._store = store
        self._vectors = vectors
        self._embedder = embedder
        self._forget_answers = forget_answers
        self._now = now
        self._retry_s = retry_s
        self._usual: _Usual | None = None
        self._waiting: dict[str, None] = {}
        self._stale: dict[Partition, None] = {}
        self._shown: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()
        self._expire_at = 0.0
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to embed, and to note what was recalled, in the background."""
        self._worker = asyncio.create_task(self._work(), name="facts")

    async def aclose(self) -> None:
        """Ends it, and notes what is left to note. Never raises; may be called twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
        with contextlib.suppress(AprendizError):  # when a fact was last recalled is no loss
            await self._flush()

    async def recall(self, user_id: str, text: str, *, limit: int = 8) -> tuple[RecalledFact, ...]:
        """What this user keeps that matters for ``text``, the most relevant first.

        Raises StorageUnavailable. Where the embedder or the store is away, shared words decide.
        """
        kept = await self._store.kept(user_id) if limit > 0 else []
        if not kept:
            return ()
        relevance = await self._relevance(user_id, text, kept)
        standing = [fact for fact in reversed(kept) if is_standing(fact.text)][: max(limit // 2, 1)]
        others = [fact for fact in kept if fact not in standing and relevance.get(fact.id, 0.0) >= FLOOR]
        others.sort(key=lambda fact: (-relevance[fact.id] * self._freshness(fact), fact.id))
        chosen = [*standing, *others][:limit]
        self._shown.update(dict.fromkeys((user_id, fact.id) for fact in chosen))
        return tuple(RecalledFact(fact.id, fact.text, fact.updated_at) for fact in chosen)

    async def learn(self, user_id: str, text: str, prediction_id: str | None) -> list[FactRecord]:
        """Proposes what the user states in ``text``, their own message to which ``prediction_id`` is the answer.

        Returns what is new among it. Never raises: an answer is not lost for want of a proposal.
        """
        texts = stated(text)
        if not texts:
            return []
        now = self._now()
        facts = [self._fact(user_id, each, "proposed", now, prediction_id) for each in texts]
        try:
            proposed = await self._store.propose(user_id, facts, now=now)
        except AprendizError as error:
            logger.warning("what a user stated could not be proposed", extra={"data": {"error": error.slug}})
            return []
        if proposed.dropped:
            logger.info("older proposals made room for new ones", extra={"data": {"count": proposed.dropped}})
        return [*proposed.facts]

    async def list(
        self, user_id: str, *, state: FactState | None = None, limit: int = 100, after: str | None = None
    ) -> list[FactRecord]:
        """A user's facts and proposals, newest first."""
        return await self._store.list(user_id, now=self._now(), state=state, limit=limit, after=after)

    async def add(self, user_id: str, text: str) -> FactRecord:
        """Keeps what the user writes. What they keep already in the same words is returned as it is. Raises Conflict: full."""
        fact = await self._store.add(self._fact(user_id, text, "kept", self._now()))
        self._embed_soon(user_id)
        return fact

    async def edit(self, user_id: str, fact_id: str, *, text: str | None = None, keep: bool = False) -> FactRecord:
        """Changes the words of a fact, or takes the user's consent to keep it. Raises NotFound; Conflict: full."""
        old = await self._get(user_id, fact_id)
        fact = await self._store.edit(fact_id, user_id=user_id, now=self._now(), text=text, keep=keep)
        if fact is None:
            raise _none()
        if fact.state == "kept":
            self._embed_soon(user_id)
        if old.state == "kept" and old.text != fact.text:
            await self._dropped(user_id, [old])
        return fact

    async def delete(self, user_id: str, fact_id: str) -> None:
        """Removes one, with its vector, and answers that it was shown with are not given again. Raises NotFound."""
        gone = await self._store.delete(fact_id, user_id=user_id, now=self._now()) if is_uuid7(fact_id) else None
        if gone is None:
            raise _none()
        await self._dropped(user_id, [gone])

    async def clear(self, user_id: str) -> int:
        """Removes all facts and proposals of a user, as `delete`. Returns how many."""
        gone = await self._store.clear(user_id, now=self._now())
        await self._dropped(user_id, gone)
        return len(gone)

    def forget(self, user_id: str) -> None:
        """Drops what is pending for an account that is gone."""
        self._waiting.pop(user_id, None)
        for key in [each for each in self._shown if each[0] == user_id]:
            del self._shown[key]

    async def _get(self, user_id: str, fact_id: str) -> FactRecord:
        found = await self._store.get(fact_id, user_id=user_id) if is_uuid7(fact_id) else None
        if found is None:
            raise _none()
        return found

    async def _dropped(self, user_id: str, gone: Sequence[FactRecord]) -> None:
        """After kept facts went or changed: nothing of them is left in the store, nor in cached answers."""
        kept = [each for each in gone if each.state == "kept"]
        if not kept:
            return
        for key in [(user_id, each.id) for each in kept]:
            self._shown.pop(key, None)
        for space in {each.space for each in kept if each.space is not None}:
            partition = Partition(user_id, FACTS, space)
            try:
                async with asyncio.timeout(_REFRESH_S):
                    await self._vectors.refresh(partition)
            except (AprendizError, TimeoutError):
                # No search finds it any more; what lies in the store goes once it can be reached.
                self._stale[partition] = None
                self._wake.set()
        await self._forget_answers(user_id)

    async def _relevance(self, user_id: str, text: str, kept: Sequence[FactRecord]) -> dict[str, float]:
        """0 to 1 by id; what is missing has nothing to do with ``text``."""
        words = _telling(text)
        found = {fact.id: shared for fact in kept if (shared := _shared(words, _telling(fact.text))) > 0}
        try:
            async with asyncio.timeout(_RECALL_S):
                similar = await self._similar(user_id, text, kept)
        except (AprendizError, TimeoutError) as error:
            logger.debug("facts are recalled by words alone", extra={"data": {"error": type(error).__name__}})
            return found
        return {key: max(found.get(key, 0.0), similar.get(key, 0.0)) for key in {*found, *similar}}

    async def _similar(self, user_id: str, text: str, kept: Sequence[FactRecord]) -> dict[str, float]:
        space = await self._embedder.space()
        if space is None:
            return {}
        embedded = [fact.id for fact in kept if fact.space == space]
        if len(embedded) < len(kept):
            self._embed_soon(user_id)
        if not embedded:
            return {}
        [vector] = await self._embedder.embed([text], kind="query", user_id=user_id)
        if len(embedded) > _EXACT:
            hits = await self._vectors.search(Partition(user_id, FACTS, space), vector, _EXACT)
            embedded = [hit.id for hit in hits]
        usual = await self._learn_usual(space, user_id)
        query = array("f", map(operator.sub, _floats(vector), usual.query))
        vectors = await self._store.vectors(user_id, space, embedded)
        return {key: usual.similarity(query, _floats(each)) for key, each in vectors.items()}

    async def _learn_usual(self, space: str, user_id: str) -> _Usual:
        if self._usual is None or self._usual.space != space:
            queries = await self._embedder.embed(_USUAL, kind="query", user_id=user_id)
            passages = await self._embedder.embed(_USUAL, kind="passage", user_id=user_id)
            self._usual = _Usual(space, _mean(queries), _mean(passages))
        return self._usual

    def _freshness(self, fact: FactRecord) -> float:
        last = max(fact.updated_at, fact.recalled_at or fact.updated_at)
        days = max((self._now() - last).total_seconds() / 86_400, 0.0)
        return float(0.5 ** (days / HALF_LIFE_DAYS))

    def _fact(self, user_id: str, text: str, state: FactState, now: datetime, prediction_id: str | None = None) -> FactRecord:
        return FactRecord(uuid7(), user_id, text, state, now, now, hash_of(text), prediction_id)

    def _embed_soon(self, user_id: str) -> None:
        if len(self._waiting) < _MOST_USERS:  # whoever does not get in comes back with the next recall
            self._waiting[user_id] = None
            self._wake.set()

    async def _work(self) -> None:
        """Embeds what waits, tidies the store, notes what was recalled, and lets proposals expire."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self._wake.wait()
            self._wake.clear()
            # Each by itself: what was deleted leaves the store even while the embedder is away.
            done = [await self._tried(step) for step in (self._flush, self._expire, self._refresh_stale, self._embed_waiting)]
            if not all(done):
                await asyncio.sleep(self._retry_s)

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except AprendizError as error:
            logger.info("facts are embedded later", extra={"data": {"error": error.slug}})
            return False
        except Exception:
            logger.exception("The keeper of facts failed; it goes on.")
            return False
        return True

    async def _expire(self) -> None:
        if time.monotonic() >= self._expire_at:
            await self._store.expire(now=self._now())
            self._expire_at = time.monotonic() + _EXPIRE_S

    async def _flush(self) -> None:
        shown, self._shown = self._shown, {}
        if shown:
            await self._store.recalled(shown, now=self._now())

    async def _embed_waiting(self) -> None:
        while self._waiting:
            user_id = next(iter(self._waiting))
            del self._waiting[user_id]  # before the work: what is kept meanwhile asks again
            try:
                await self._embed(user_id)
            except BaseException:
                self._waiting[user_id] = None  # as the last: it may be their budget, and others come first
                raise

    async def _embed(self, user_id: str) -> None:
        """Gives a user's kept facts the vectors that they lack. Raises what the embedder does."""
        space = await self._embedder.space()
        if space is None:
            return
        facts = [fact for fact in await self._store.kept(user_id) if fact.space != space]
        for start in range(0, len(facts), _BATCH):
            batch = facts[start : start + _BATCH]
            vectors = await self._embedder.embed([fact.text for fact in batch], kind="passage", user_id=user_id)
            await self._store.embedded(user_id, space, [*zip(batch, vectors, strict=True)])

    async def _refresh_stale(self) -> None:
        while self._stale:
            partition = next(iter(self._stale))
            await self._vectors.refresh(partition)
            self._stale.pop(partition, None)


def _none() -> NotFound:
    return NotFound("There is no such fact.")


def _telling(text: str) -> frozenset[str]:
    return frozenset(query_words(text)) - _LIGHT


def _shared(query: Iterable[str], fact: frozenset[str]) -> float:
    """What part of a fact's telling words stands in the query too; of a long fact, four are enough."""
    common = sum(word in fact for word in query)
    return common / min(max(len(fact), 2), 4) if common else 0.0


def _floats(vector: bytes) -> array[float]:
    return array("f", vector)


def _mean(vectors: Sequence[bytes]) -> array[float]:
    sums = [sum(column) / len(vectors) for column in zip(*map(_floats, vectors), strict=True)]
    return array("f", sums)


def _dot(one: array[float], other: array[float]) -> float:
    return float(sum(map(operator.mul, one, other)))
