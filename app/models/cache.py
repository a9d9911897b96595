"""The response cache: a whole answer, given again to the same user for the same question, and asked for once at a time.

`ResponseCache` is the rule: when to look, who waits for whom, what is kept. `AnswerStore` is where answers lie: `MemoryStore`
here, another process's later. Neither knows a model, a slot or a route; a `Question` says all that they have to know.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from app.core.errors import AprendizError, ContextOverflow
from app.core.metrics import Metrics
from app.core.settings import Cache
from app.core.types import Context, Event, Example, GenerationRequest, Message, Passage, RecalledFact, Sampling
from app.models.recording import Origin, Recorder, Recording, size_of

_KEPT: Final = frozenset({"stop", "length", "tool_calls"})
_LASTING: Final = frozenset({None, ContextOverflow.slug})
"""Why a target answered that will answer next time too."""
_ENTRY_BYTES: Final = 512
"""What an entry takes beside its recording: key, places in the tables, age."""
_SHARE: Final = 16
"""One answer may fill this part of the cache, no more."""
_APART: Final = {
    "model",
    "conversation_id",
    "request_id",
    "cache",
    "max_age_s",
    "prediction_id",
    "whole",
    "door",
    "no_examples",
}
"""Of a request, what does not shape the answer; everything else does, whatever is added."""
_SHAPING: Final = tuple(field.name for field in dataclasses.fields(GenerationRequest) if field.name not in _APART)
_FOUND_APART: Final = {"score", "said_at"}
"""Of what was found, what a model is not shown and what says nothing of its words."""
_FIELDS: Final = {
    kind: tuple(field.name for field in dataclasses.fields(kind) if field.name not in _FOUND_APART)
    for kind in (Message, Sampling, Example, Context, Passage, RecalledFact)
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, as far as an answer to it may be given again.

    ``key``: equal for equal questions of one user. ``versions``: ids of what could answer now, as far as they are known: an
    answer of any other version is none. ``max_age_s``: oldest answer that will do. ``refresh``: none will do, but keep the new.
    """

    key: str
    user_id: str
    versions: frozenset[str]
    max_age_s: float | None = None
    refresh: bool = False


class AnswerStore(Protocol):
    """Where answers lie until they are too old. Keys are SHA-256 in hex."""

    async def get(self, key: str) -> tuple[Recording, float] | None:
        """The answer and its age in seconds, or None."""

    async def put(self, key: str, recording: Recording, *, user_id: str) -> None:
        """Keeps an answer in place of an earlier one; one that is too large is dropped."""

    async def purge(self, *, version: str | None = None, user_id: str | None = None) -> None:
        """Drops all answers of a version, or of a user."""

    async def clear(self) -> None:
        """Drops all answers."""

    async def sweep(self) -> None:
        """Drops what is too old, if it does not go by itself."""


def repeatable(sampling: Sampling, default_temperature: float, *, seeds: bool) -> bool:
    """Whether asking again would give the same: greedy, or with a seed of the caller's that the model heeds (``seeds``)."""
    temperature = default_temperature if sampling.temperature is None else sampling.temperature
    return temperature == 0 or (seeds and sampling.seed is not None)


def key_of(request: GenerationRequest, user_id: str, targets: Sequence[str]) -> str:
    """SHA-256 over everything that shapes an answer: whose, by whom (``targets``, in order), messages, sampling, and the rest
    of what a request says of it.

    The default system prompt follows from the targets. The order of members in tools and schemas counts, for it shapes what a
    model writes.
    """
    parts = (user_id, targets, [getattr(request, name) for name in _SHAPING])
    return hashlib.sha256(json.dumps(parts, default=_plain, separators=(",", ":")).encode()).hexdigest()


class Lease:
    """The duty to answer a question for all who wait for it. End it with `keep`, or with `abandon`, however the call ends."""

    def __init__(self, cache: ResponseCache, question: Question, limit: int) -> None:
        self.question = question
        self.outcome: asyncio.Future[Recording | None] = asyncio.get_running_loop().create_future()
        """For those who wait: the answer, or None, and one of them is next."""
        self.purged = False
        """What was to be forgotten meanwhile is not kept."""
        self._cache = cache
        self._recorder = Recorder(limit)

    def note(self, events: Sequence[Event]) -> None:
        """Takes the next events of the answer, the closing one too."""
        self._recorder.note(events)

    async def keep(self, origin: Origin) -> None:
        """The answer is whole and stored: gives it to those who wait, and keeps it for others.

        Another target's answer for a first one that failed, and one that a filter cut, go to those who wait, and no further.
        """
        recording = None
        try:
            recording = self._recorder.recording(origin)
            if recording is not None and self._worth_keeping(recording):
                await self._cache.put(self.question, recording)
        finally:
            self._cache.end(self, recording)

    def abandon(self) -> None:
        """There is no answer to give again: one of those who wait is next. After `keep`, or a second time, does nothing."""
        self._cache.end(self, None)

    def _worth_keeping(self, recording: Recording) -> bool:
        return not self.purged and recording.finished.reason in _KEPT and recording.origin.fallback in _LASTING


class ResponseCache:
    """Who gets an answer again, who waits for it, and who has to ask.

    Args:
        settings: section ``cache``.
        metrics: the service's metrics.
        waiting: how many may wait for others' answers at once; one more asks by itself.
        wait_s: longest wait for another's answer; then one asks by oneself.
        store: where answers lie; this process's memory unless told.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Cache,
        *,
        metrics: Metrics,
        waiting: int,
        wait_s: float,
        store: AnswerStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled = settings.ttl_s > 0
        self._limit = settings.max_mb * 2**20 // _SHARE
        self._counts = {result: metrics.cache.labels(result) for result in ("hit", "miss", "wait", "bypass")}
        self._waiting_limit = waiting
        self._wait_s = wait_s
        self._store = store or MemoryStore(settings, on_size=metrics.cache_bytes.set, clock=clock)
        self._clock = clock
        self._waiting = 0
        self._flights: dict[str, Lease] = {}
        self._leases: set[Lease] = set()
        self._refusal: Callable[[], AprendizError] | None = None

    def bypass(self) -> None:
        """Notes a call that does not look here."""
        self._counts["bypass"].inc()

    async def ask(self, question: Question) -> Recording | Lease:
        """The answer, at once or once another call has it; or the duty to answer.

        Never fails a call that would go without it: who waits too long asks by himself.

        Raises:
            AprendizError: what `refuse` was given.
        """
        if question.refresh:
            return self._lease(question)
        deadline = self._clock() + self._wait_s
        while True:
            if (found := await self._stored(question)) is not None:
                self._counts["hit"].inc()
                return found
            flight = self._flights.get(question.key)
            if flight is None:
                lease = self._flights[question.key] = self._lease(question)
                return lease
            left = deadline - self._clock()
            if left <= 0 or self._waiting >= self._waiting_limit:
                return self._lease(question)
            if (shared := await self._wait(flight, left)) is not None:
                self._counts["wait"].inc()
                return shared

    async def put(self, question: Question, recording: Recording) -> None:
        """Keeps an answer."""
        await self._store.put(question.key, recording, user_id=question.user_id)

    def end(self, lease: Lease, recording: Recording | None) -> None:
        """Lets those who wait for ``lease`` go on: with its answer, or without."""
        self._leases.discard(lease)
        if self._flights.get(lease.question.key) is lease:
            del self._flights[lease.question.key]
        if not lease.outcome.done():
            lease.outcome.set_result(recording)

    async def purge(self, version: str) -> None:
        """Forgets all answers of a version that nothing means any more, and keeps none that is being given."""
        for lease in self._leases:
            lease.purged = lease.purged or version in lease.question.versions
        await self._store.purge(version=version)

    async def purge_user(self, user_id: str) -> None:
        """Forgets all answers to a user, and keeps none that is being given."""
        for lease in self._leases:
            lease.purged = lease.purged or lease.question.user_id == user_id
        await self._store.purge(user_id=user_id)

    async def purge_all(self) -> None:
        """Forgets all answers, and keeps none that is being given: what a person said may stand in others' answers."""
        for lease in self._leases:
            lease.purged = True
        await self._store.clear()

    async def sweep(self) -> None:
        """Forgets what is too old; to be called every now and then."""
        await self._store.sweep()

    def refuse(self, error: Callable[[], AprendizError]) -> None:
        """The service ends: all who wait get a fresh ``error`` each, and so does whoever would."""
        self._refusal = error
        for lease in self._flights.values():
            if not lease.outcome.done():
                lease.outcome.set_result(None)

    async def _stored(self, question: Question) -> Recording | None:
        found = await self._store.get(question.key)
        if found is None:
            return None
        recording, age_s = found
        old = question.max_age_s is not None and age_s > question.max_age_s
        return None if old or recording.origin.version not in question.versions else recording

    def _lease(self, question: Question) -> Lease:
        self._counts["miss"].inc()
        lease = Lease(self, question, self._limit)
        self._leases.add(lease)
        return lease

    async def _wait(self, flight: Lease, seconds: float) -> Recording | None:
        self._waiting += 1
        try:
            if self._refusal is None:
                # Not `wait_for`: whoever leaves here must not cancel the outcome for the others.
                await asyncio.wait([flight.outcome], timeout=seconds)
            if self._refusal is not None:
                raise self._refusal()
        finally:
            self._waiting -= 1
        return flight.outcome.result() if flight.outcome.done() else None


@dataclass(frozen=True, slots=True)
class _Entry:
    recording: Recording
    user_id: str
    stored_at: float
    size: int


class MemoryStore:
    """Answers in this process: bounded by age and by bytes, the longest unused go first.

    Args:
        settings: section ``cache``.
        on_size: hears of the bytes in use after each change.
        clock: seconds, monotonic.
    """

    def __init__(
        self, settings: Cache, *, on_size: Callable[[int], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = settings.ttl_s
        self._limit = settings.max_mb * 2**20
        self._on_size = on_size
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._size = 0
        self._sweep_at = clock() + self._ttl_s

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self._size

    async def get(self, key: str) -> tuple[Recording, float] | None:
        """As `AnswerStore.get`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age_s = self._clock() - entry.stored_at
        if age_s >= self._ttl_s:
            self._drop([key])
            return None
        self._entries.move_to_end(key)
        return entry.recording, age_s

    async def put(self, key: str, recording: Recording, *, user_id: str) -> None:
        """As `AnswerStore.put`."""
        size = size_of(recording) + _ENTRY_BYTES
        self._drop([key])
        if size > self._limit // _SHARE:
            return
        self._entries[key] = _Entry(recording, user_id, self._clock(), size)
        self._size += size
        self._drop(self._unused())

    async def purge(self, *, version: str | None = None, user_id: str | None = None) -> None:
        """As `AnswerStore.purge`."""
        self._drop(
            [key for key, each in self._entries.items() if version == each.recording.origin.version or user_id == each.user_id]
        )

    async def clear(self) -> None:
        """As `AnswerStore.clear`."""
        self._drop(list(self._entries))

    async def sweep(self) -> None:
        """As `AnswerStore.sweep`; looks through all of them, so no more than once in the life of an answer."""
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + self._ttl_s
            self._drop([key for key, each in self._entries.items() if now - each.stored_at >= self._ttl_s])

    def _unused(self) -> list[str]:
        """The longest unused, as many as are too many."""
        found, size = [], self._size
        for key, entry in self._entries.items():
            if size <= self._limit:
                break
            found.append(key)
            size -= entry.size
        return found

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            if (entry := self._entries.pop(key, None)) is not None:
                self._size -= entry.size
        if self._on_size is not None:
            self._on_size(self._size)


def _plain(value: object) -> Any:
    if isinstance(value, Message | Sampling | Example | Context | Passage | RecalledFact):
        return [getattr(value, name) for name in _FIELDS[type(value)]]
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
