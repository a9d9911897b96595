"""One engine for all versions of one base: who is open on it, who may use it now, and the move to a new one.

llama.cpp loads adapters when it starts, and none later. So a new adapter starts a new engine that lists those in use and it;
when that is ready, all open models of the base go there with their next request, and the old engine closes with its last
answer. Whatever happens to the new one before that moment happens to nobody but who asked for it. Knows nothing of chats.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from app.core.errors import EngineUnavailable, ModelLoadFailed
from app.core.types import EngineState
from app.providers.base import AdapterFiles, EngineStatus
from app.providers.engine import Engine

GGUF_FILE: Final = "adapter.gguf"
OnState = Callable[[EngineState], None]


def gguf_hash(adapter: AdapterFiles) -> str:
    """SHA-256 of the adapter's GGUF file, by which an engine knows it. Raises ModelLoadFailed where it has none."""
    if adapter.gguf is None:
        raise ModelLoadFailed("This adapter was not made for llamacpp; serve it with the provider hf.")
    return adapter.files[adapter.gguf.name]


@dataclass(eq=False, slots=True)
class Run:
    """One engine from its start to its end. ``about``: what it says of its model, for who opens one."""

    engine: Engine
    adapters: Sequence[AdapterFiles]
    seats: asyncio.Semaphore
    about: Any = None
    users: int = 0
    """Requests that it works on, or that wait for a seat."""

    def lora(self, adapter: AdapterFiles | None) -> list[dict[str, float]]:
        """The field of a request: the scale of each adapter, always of all. Without it llama.cpp goes on from what another
        adapter left in its cache.

        Raises:
            ModelLoadFailed: the adapter's file was gone or changed when the engine came back from a crash.
        """
        listed = self.engine.facts.get("adapters", ())
        wanted = None if adapter is None else gguf_hash(adapter)
        if wanted is not None and wanted not in listed:
            raise ModelLoadFailed("The adapter is damaged or gone: restore it from a backup or train again.")
        return [{"id": number, "scale": float(known == wanted)} for number, known in enumerate(listed)]


Make = Callable[[Sequence[AdapterFiles], OnState], Run]
"""An engine with these adapters, not started; the listener hears of its states."""
Start = Callable[[Run], Awaitable[None]]
"""Starts it, and returns when it can answer with the last of its adapters. Raises ModelLoadFailed."""


@dataclass(eq=False, slots=True)
class Member:
    """An open model of the base, or one that is being opened."""

    adapter: AdapterFiles | None
    on_state: OnState

    @property
    def key(self) -> str | None:
        """What tells its version from others of the base."""
        return None if self.adapter is None else gguf_hash(self.adapter)


@dataclass(eq=False, slots=True)
class Base:
    """The open models of one base file on one device.

    Args:
        make, start: an engine.
        on_empty: called when nothing is open any more.
    """

    make: Make
    start: Start
    on_empty: Callable[[], None]
    _members: set[Member] = field(default_factory=set)
    _current: Run | None = None
    _draining: set[Run] = field(default_factory=set)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _joining: int = 0
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def join(self, member: Member) -> Run:
        """Serves ``member`` too: from the engine that runs if it can, else all from a new one. One at a time.

        A version that is open already starts a new engine as well: whoever opens it again wants it afresh.

        Raises:
            ModelLoadFailed: as `Start`; whoever was served before is served as before.
        """
        self._joining += 1
        member.on_state(EngineState.STARTING)
        try:
            async with self._lock:
                run = self._current
                if run is None or not self._can_serve(run, member):
                    run = await self._move(member)
                self._members.add(member)
                state = run.engine.status().state
        except BaseException:
            member.on_state(EngineState.FAILED)
            raise
        finally:
            self._joining -= 1
            self._tidy()
        member.on_state(state)
        return run

    async def leave(self, member: Member) -> None:
        """Ends a model; with the last one the engines end too, and are gone when this returns. May be called twice."""
        if member in self._members:
            self._members.discard(member)
            member.on_state(EngineState.STOPPED)
        if not self._members:
            run, self._current = self._current, None
            for each in (*self._draining, *([] if run is None else [run])):
                self._retire(each, now=True)
            self._tidy()
            await self._closed()

    def status(self, member: Member) -> EngineStatus:
        """Of the engine that serves ``member``."""
        if member not in self._members or self._current is None:
            return EngineStatus(EngineState.STOPPED)
        return self._current.engine.status()

    def run(self, member: Member) -> Run:
        """What serves ``member`` now, for what needs no seat. Raises EngineUnavailable: the model is closed."""
        if member not in self._members or self._current is None:
            raise EngineUnavailable("The model engine is stopped.", retry_after=1)
        return self._current

    @asynccontextmanager
    async def seat(self, member: Member) -> AsyncIterator[Run]:
        """The engine for one request, as soon as one of its seats is free: what waits in llama.cpp's own queue could not be
        called back.

        Raises:
            EngineUnavailable: the model is closed.
        """
        while True:
            run = self.run(member)
            run.users += 1
            try:
                async with run.seats:
                    if run is self._current:
                        yield run
                        return
            finally:
                run.users -= 1
                if run is not self._current and run.users == 0:
                    self._close(run)

    def _can_serve(self, run: Run, member: Member) -> bool:
        if run.engine.status().state is not EngineState.READY or any(each.key == member.key for each in self._members):
            return False
        return member.key is None or member.key in run.engine.facts.get("adapters", ())

    async def _move(self, member: Member) -> Run:
        used = {each.key: each.adapter for each in self._members if each.adapter is not None}
        if member.adapter is not None:
            used.pop(member.key, None)
            used[member.key] = member.adapter  # the last: it is the one that is tried
        box: list[Run] = []

        def heard(state: EngineState) -> None:
            if box and box[0] is self._current:
                for each in tuple(self._members):
                    each.on_state(state)

        run = self.make(tuple(used.values()), heard)
        box.append(run)
        try:
            await self.start(run)
        except BaseException:
            self._close(run)
            await self._closed()
            raise
        old, self._current = self._current, run
        if old is not None:
            self._retire(old)
        for each in tuple(self._members):
            each.on_state(run.engine.status().state)  # the old one may have been down
        return run

    def _retire(self, run: Run, *, now: bool = False) -> None:
        """Who waits for a seat there goes to the current one; who has one finishes, unless all must end ``now``."""
        for _ in range(run.users):
            run.seats.release()
        if now or run.users == 0:
            self._close(run)
        else:
            self._draining.add(run)

    def _close(self, run: Run) -> None:
        """In a task of its own: whoever left last may be cancelled, and the process must go all the same."""
        self._draining.discard(run)
        task = asyncio.create_task(run.engine.aclose(), name="engine close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _closed(self) -> None:
        """Returns when the engines that were told to end are gone; they go on ending where this is cancelled."""
        if self._closing:
            await asyncio.wait(self._closing)

    def _tidy(self) -> None:
        if not self._members and not self._joining:
            self.on_empty()
