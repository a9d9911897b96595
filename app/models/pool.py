"""All deployments of one process: at most one current one per spec, beside those that still drain.

The pool decides when to load, take back, evict and close. It knows no alias: whoever needs a deployment asks for its spec,
and tells the pool when nobody needs it any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from typing import Final, Literal

from app.core.errors import AprendizError, Overloaded, ShuttingDown
from app.core.metrics import Metrics
from app.core.settings import Model
from app.core.types import EngineState, ModelSpec, VersionInfo
from app.models.deployment import Deployment
from app.models.stores import Providers

logger = logging.getLogger(__name__)

_FIRST_COOL_DOWN_S = 2.0
_LONGEST_COOL_DOWN_S = 300.0
_MOST_REMOTE = 256
"""Clients of other people's models at once. Each costs little; but where an upstream exposes any name, callers choose them."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a spec could not be loaded, and until when (on the pool's clock) nobody tries again. ``times``: in a row."""

    error: AprendizError
    until: float
    times: int


_EMBEDDERS: Final = frozenset({"onnx"})
"""Providers whose models only make vectors. They are small, and each answer may need one: so they have seats of their own."""
_MOST_EMBEDDERS: Final = 2
"""The one in use, and its successor while vectors are made anew."""


class Pool:
    """The deployments.

    Args:
        settings: section ``model``.
        providers: the registry.
        metrics: passed on.
        register: makes a version known before it answers anything.
        on_ready: hears of each deployment that has loaded.
        remote: providers that are other people's machines; their models do not count against ``max_loaded``.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Model,
        providers: Providers,
        metrics: Metrics,
        *,
        register: Callable[[ModelSpec, VersionInfo], Awaitable[None]],
        on_ready: Callable[[Deployment], None],
        remote: Container[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._remote = remote
        self._providers = providers
        self._metrics = metrics
        self._register = register
        self._on_ready = on_ready
        self._clock = clock
        self._current: dict[ModelSpec, Deployment] = {}
        self._leaving: set[Deployment] = set()
        self._failures: dict[ModelSpec, Failure] = {}
        self._closed = False

    def find(self, spec: ModelSpec) -> Deployment | None:
        """The deployment that serves ``spec``, loaded or loading."""
        deployment = self._current.get(spec)
        return deployment if deployment is not None and deployment.usable else None

    def all(self) -> list[Deployment]:
        """Every deployment that has not closed, current ones first."""
        return [*self._current.values(), *self._leaving]

    def failure(self, spec: ModelSpec) -> Failure | None:
        """Why ``spec`` is not loaded, if the last try failed."""
        return self._failures.get(spec)

    def get(self, spec: ModelSpec) -> Deployment:
        """The deployment for ``spec``, loading from now on if it was not; for requests, which must not hammer on a broken
        model.

        Raises:
            AprendizError: what the last try failed with, during its cool-down; with ``retry_after``.
            Overloaded: ``max_loaded`` engines are busy.
        """
        found = self.find(spec)
        if found is not None:
            return found
        failure = self._failures.get(spec)
        if failure is not None and failure.until > self._clock():
            raise failure.error.again(retry_after=float(round(failure.until - self._clock() + 0.5)))
        return self.obtain(spec)

    def obtain(
        self, spec: ModelSpec, *, replaces: ModelSpec | None = None, beside: Callable[[ModelSpec], bool] | None = None
    ) -> Deployment:
        """As `get`, but tries at once after a failure: for an admin's order. ``replaces``: a spec that will go in exchange.

        ``beside``: what serves. It does not go for the new one, which is loaded beyond ``max_loaded`` if nothing else can go.
        """
        found = self.find(spec) or self._take_back(spec)
        if found is None:
            self._make_room(spec, replaces, beside)
            found = self._build(spec)
            self._current[spec] = found
        found.start()
        return found

    def fresh(self, spec: ModelSpec) -> Deployment:
        """A new deployment of ``spec`` beside the current one, loading. `install` puts it in its place, or `discard` ends
        it."""
        deployment = self._build(spec)
        self._leaving.add(deployment)
        deployment.start()
        return deployment

    def install(self, deployment: Deployment) -> None:
        """Puts a `fresh` one in the place of the current one of its spec, which drains."""
        old = self._current.get(deployment.spec)
        self._leaving.discard(deployment)
        self._current[deployment.spec] = deployment
        if old is not None and old is not deployment:
            old.superseded = True
            self._leaving.add(old)
            old.retire()

    def discard(self, deployment: Deployment) -> None:
        """Retires a deployment that nobody needs any more: it finishes its requests and closes."""
        if self._current.get(deployment.spec) is deployment:
            del self._current[deployment.spec]
        self._leave(deployment)

    def sweep(self) -> None:
        """Closes what has been idle longer than ``idle_unload_minutes``; the next request loads it again."""
        limit = self._settings.idle_unload_minutes * 60
        for deployment in list(self._current.values()):
            if limit and self._evictable(deployment) and self._clock() - deployment.last_used >= limit:
                logger.info("model unloaded, idle", extra={"data": {"model": deployment.name}})
                self.discard(deployment)

    async def aclose(self) -> None:
        """Closes everything now, and builds nothing any more."""
        self._closed = True
        await asyncio.gather(*(deployment.aclose() for deployment in self.all()))

    def _take_back(self, spec: ModelSpec) -> Deployment | None:
        for deployment in self._leaving:
            if deployment.spec == spec and deployment.adopt():
                self._leaving.discard(deployment)
                self._current[spec] = deployment
                return deployment
        return None

    def _build(self, spec: ModelSpec) -> Deployment:
        if self._closed:
            raise ShuttingDown("The service is shutting down. Try again in a moment.", retry_after=5)
        try:
            provider = self._providers.get(spec.provider)
        except AprendizError as error:
            self._note_failure(spec, error)
            raise
        return Deployment(
            spec,
            provider,
            settings=self._settings,
            metrics=self._metrics,
            register=self._register,
            on_ready=self._loaded,
            on_failed=self._failed,
            on_closed=self._leaving.discard,
            clock=self._clock,
        )

    def _make_room(self, wanted: ModelSpec, replaces: ModelSpec | None, beside: Callable[[ModelSpec], bool] | None) -> None:
        """Evicts the longest unused idle one of the kind of ``wanted`` while as many are there as may be; one that is about to
        be replaced, or is on trial, does not count."""
        seats = self._seats(wanted)
        most = {"remote": _MOST_REMOTE, "embedder": _MOST_EMBEDDERS}.get(seats, self._settings.max_loaded)
        while True:
            kind = [
                each
                for spec, each in self._current.items()
                if spec != replaces and each.trials == 0 and self._seats(spec) == seats
            ]
            if len(kind) < most:
                return
            idle = [each for each in kind if self._evictable(each) and not (beside is not None and beside(each.spec))]
            if not idle:
                if beside is not None:
                    return
                what = "clients of providers are busy" if seats == "remote" else "engines are busy (model.max_loaded)"
                raise Overloaded(f"All {most} {what}.", retry_after=5)
            oldest = min(idle, key=lambda each: each.last_used)
            logger.info("model unloaded to make room", extra={"data": {"model": oldest.name}})
            self.discard(oldest)

    def _seats(self, spec: ModelSpec) -> Literal["remote", "embedder", "local"]:
        """Among whom ``spec`` is counted: only its like goes to make room for it."""
        if self.is_remote(spec):
            return "remote"
        return "embedder" if spec.provider in _EMBEDDERS else "local"

    def is_remote(self, spec: ModelSpec) -> bool:
        """By its provider's name; what a package brings is known only once it has loaded."""
        deployment = self._current.get(spec)
        return spec.provider in self._remote or (deployment is not None and deployment.remote)

    @staticmethod
    def _evictable(deployment: Deployment) -> bool:
        return deployment.pins == 0 and deployment.scheduler.idle and deployment.state is not EngineState.STARTING

    def _loaded(self, deployment: Deployment) -> None:
        self._failures.pop(deployment.spec, None)
        self._on_ready(deployment)

    def _failed(self, deployment: Deployment, error: AprendizError) -> None:
        """Nobody may ask it any more; after a cool-down that doubles, the next request may try a new one."""
        if self._current.get(deployment.spec) is deployment:
            self._note_failure(deployment.spec, error)
            del self._current[deployment.spec]
        self._leave(deployment)

    def _leave(self, deployment: Deployment) -> None:
        # One whose load failed may have closed already: it would stay among the leaving for ever.
        if not deployment.closed:
            self._leaving.add(deployment)
            deployment.retire()

    def _note_failure(self, spec: ModelSpec, error: AprendizError) -> None:
        times = self._failures[spec].times + 1 if spec in self._failures else 1
        # The exponent is bounded too: a model that stays broken for weeks must not end in an overflow.
        wait = min(_FIRST_COOL_DOWN_S * 2 ** min(times - 1, 16), _LONGEST_COOL_DOWN_S)
        self._failures[spec] = Failure(error, self._clock() + wait, times)
