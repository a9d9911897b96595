"""One loaded model with its queue: from the start of its engine to the last answer that it gives.

A deployment loads once, whoever waits for it. Retired, it takes nothing new, finishes what runs and what waits, and closes;
until it has closed it can be taken back. It knows no alias and no other deployment: `app.models.pool` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from app.core.errors import AprendizError, EngineUnavailable, ModelLoadFailed
from app.core.metrics import Metrics
from app.core.settings import Model
from app.core.types import EngineState, ModelSpec, VersionInfo
from app.models.resilience import Breaker
from app.models.scheduler import Scheduler
from app.providers.base import BaseLLMProvider, EngineStatus, LoadedModel

logger = logging.getLogger(__name__)

_LOAD_MARGIN_S = 5.0
_CLOSE_S = 30.0


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment as ``/model`` shows it."""

    model: str
    device: str
    adapter: str | None
    version: VersionInfo | None
    engine: EngineStatus
    slots: int
    running: int
    waiting: int
    draining: bool
    loaded_at: datetime | None


class Deployment:
    """One engine, its slots and its state.

    Args:
        spec: what to load.
        provider: who loads it.
        settings: section ``model``.
        metrics: where states, queue and load times go.
        register: makes the version known before it answers anything; what it raises fails the load.
        on_ready: hears that it has loaded.
        on_failed: hears that it cannot answer any more (not loaded, or given up later), with the error for later callers.
        on_closed: hears once that it has closed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        spec: ModelSpec,
        provider: BaseLLMProvider,
        *,
        settings: Model,
        metrics: Metrics,
        register: Callable[[ModelSpec, VersionInfo], Awaitable[None]],
        on_ready: Callable[[Deployment], None],
        on_failed: Callable[[Deployment, AprendizError], None],
        on_closed: Callable[[Deployment], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.name = spec.public_name
        self.label = metrics.model_label(self.name)
        self.scheduler = Scheduler(
            limit=settings.queue,
            limit_per_user=settings.queue_per_user,
            timeout_s=settings.queue_timeout_s,
            clock=clock,
            on_change=self._queue_changed,
        )
        self.pins = 0
        """Operations that need it alive although no alias points to it yet."""
        self.trials = 0
        """Of these, trials: what is loaded for them alone does not count against ``max_loaded``."""
        self.superseded = False
        """A fresher engine of the same spec has taken over: this one never comes back, and no longer speaks in the metrics."""
        self.draining = False
        self.last_used = clock()
        self.loaded_at: datetime | None = None
        self.breaker: Breaker | None = None
        """Of other people's machine, once loaded. A fresh deployment starts with a fresh one."""
        self._provider = provider
        self._settings = settings
        self._metrics = metrics
        self._register = register
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._on_closed = on_closed
        self._clock = clock
        self._loaded: LoadedModel | None = None
        self._state = EngineState.STARTING
        self._error: AprendizError | None = None
        self._loading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._shown = (0, 0)

    @property
    def loaded(self) -> LoadedModel:
        """The loaded model. Raises EngineUnavailable before it is ready."""
        if self._loaded is None:
            raise EngineUnavailable("The model is not loaded. Try again.", retry_after=1)
        return self._loaded

    @property
    def remote(self) -> bool:
        """Whether it is known to be other people's machine."""
        return self.breaker is not None

    @property
    def version(self) -> VersionInfo | None:
        """What answers here, once loaded."""
        return None if self._loaded is None else self._loaded.version

    @property
    def state(self) -> EngineState:
        """The state last heard of."""
        return EngineState.DRAINING if self.draining and self._state is EngineState.READY else self._state

    @property
    def usable(self) -> bool:
        """Whether it takes or may yet take new requests."""
        return not self.draining and self._closing is None and self._state not in (EngineState.FAILED, EngineState.STOPPED)

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it."""
        return self._closed

    async def ready(self) -> None:
        """Starts the load if nobody has, and waits for it. Who leaves does not end it for the others.

        Raises:
            UnknownModel, ModelLoadFailed: it cannot be loaded.
        """
        self.start()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._error is not None:
            raise self._error.again()

    def start(self) -> None:
        """Starts the load in the background unless it runs or has run."""
        if self._loading is None:
            self._set_state(EngineState.STARTING)
            self._loading = asyncio.create_task(self._load(), name=f"load {self.name}")

    def retire(self) -> None:
        """Takes nothing new; closes once those who run and those who wait have ended."""
        self.draining = True
        self._show_state()
        self._close_if_idle()

    def pin(self) -> None:
        """Keeps it alive although nothing uses it yet."""
        self.pins += 1

    def unpin(self) -> None:
        """Takes one `pin` back."""
        self.pins -= 1
        self._close_if_idle()

    def adopt(self) -> bool:
        """Takes a retired one back into service. False where it is too late."""
        if self.superseded or self._closing is not None or self._state in (EngineState.FAILED, EngineState.STOPPED):
            return False
        self.draining = False
        self._show_state()
        return True

    async def aclose(self) -> None:
        """Closes now, whatever runs. Never raises; may be called twice."""
        self.draining = True
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait([self._loading])
        self._start_closing()
        if self._closing is not None:
            await asyncio.wait([self._closing])

    def status(self) -> DeploymentStatus:
        """Everything to show, without waiting."""
        engine = EngineStatus(self._state) if self._loaded is None else self._loaded.status()
        return DeploymentStatus(
            model=self.name,
            device=self.spec.device,
            adapter=self.spec.adapter,
            version=self.version,
            engine=engine,
            slots=self.scheduler.slots,
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            draining=self.draining,
            loaded_at=self.loaded_at,
        )

    async def _load(self) -> None:
        started = self._clock()
        try:
            # The provider has the same limit and the better words; this one only guards against a provider that forgets it.
            async with asyncio.timeout(self._settings.load_timeout_s + _LOAD_MARGIN_S):
                loaded = await self._open()
        except AprendizError as error:
            self._load_failed(error)
        except TimeoutError:
            self._load_failed(ModelLoadFailed("The model did not become ready in time. See model.load_timeout_s."))
        except asyncio.CancelledError:
            self._load_failed(EngineUnavailable("The load was cancelled. Try again.", retry_after=1))
            raise
        except Exception:
            logger.exception("A provider failed unexpectedly while it loaded a model.", extra={"data": {"model": self.name}})
            self._load_failed(ModelLoadFailed("The model could not be loaded; the service's log says more."))
        else:
            self._opened(loaded, self._clock() - started)

    async def _open(self) -> LoadedModel:
        loaded = await self._provider.open(self.spec, on_state=self._engine_state)
        try:
            await self._register(self.spec, loaded.version)
        except BaseException:
            await loaded.aclose()
            raise
        return loaded

    def _opened(self, loaded: LoadedModel, seconds: float) -> None:
        self._loaded = loaded
        if loaded.capabilities.remote:
            self.breaker = Breaker()
        self.loaded_at = datetime.now(UTC)
        self.last_used = self._clock()
        self._metrics.engine_load_seconds.labels(self.label).observe(seconds)
        # It may have died, or begun to restart, between its own "ready" and here.
        state = loaded.status().state
        self._set_state(EngineState.READY if state in (EngineState.STARTING, EngineState.STOPPED) else state)
        self.scheduler.open(loaded.capabilities.slots if self._state is EngineState.READY else 0)
        logger.info(
            "model loaded", extra={"data": {"model": self.name, "version": loaded.version.id, "seconds": round(seconds, 3)}}
        )
        if self._state is EngineState.FAILED:
            self._engine_failed()
        else:
            self._on_ready(self)
        self._close_if_idle()

    def _load_failed(self, error: AprendizError) -> None:
        self._error = error
        self._set_state(EngineState.FAILED)
        logger.error("model not loaded", extra={"data": {"model": self.name, "error": error.slug, "detail": error.detail}})
        self.scheduler.refuse(error.again)
        self._on_failed(self, error)

    def _engine_state(self, state: EngineState) -> None:
        """Hears every change of the engine's state after it was opened."""
        if self._closing is not None or state is self._state or self._loaded is None:
            return
        logger.info("engine state", extra={"data": {"model": self.name, "state": state.value}})
        if state is EngineState.RESTARTING:
            self._metrics.engine_restarts.labels(self.label).inc()
        self._set_state(state)
        if state is EngineState.READY:
            self.scheduler.resume(self._loaded.capabilities.slots)
        elif state in (EngineState.FAILED, EngineState.STOPPED):
            self._engine_failed()
        else:
            # Those who wait keep their places: a restart takes less than their deadline, or they are told.
            self.scheduler.pause()

    def _engine_failed(self) -> None:
        error = EngineUnavailable("The model engine stopped and could not be restarted. Try again later.", retry_after=5)
        self._error = error
        self.scheduler.pause()
        self.scheduler.refuse(error.again)
        self._on_failed(self, error)

    def _queue_changed(self) -> None:
        self.last_used = self._clock()
        waiting, running = self.scheduler.waiting, self.scheduler.running
        # By difference, because an old and a new engine of one model share the labels while the old one drains.
        series, (waited, ran) = self._metrics.of_model(self.label), self._shown
        if waiting != waited:
            series.queue_length.inc(waiting - waited)
        if running != ran:
            series.running.inc(running - ran)
        self._shown = (waiting, running)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self.draining and self.pins == 0 and self.scheduler.idle and self._state is not EngineState.STARTING:
            self._start_closing()

    def _start_closing(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close {self.name}")

    async def _close(self) -> None:
        error = EngineUnavailable("The model was unloaded. Try again.", retry_after=1)
        self.scheduler.pause()
        self.scheduler.refuse(error.again)
        try:
            if self._loaded is not None:
                async with asyncio.timeout(_CLOSE_S):
                    await self._loaded.aclose()
        except Exception:
            logger.exception("An engine did not close cleanly.", extra={"data": {"model": self.name}})
        finally:
            if self._state is not EngineState.FAILED:
                self._set_state(EngineState.STOPPED)
            self._closed = True
            self._on_closed(self)

    def _set_state(self, state: EngineState) -> None:
        self._state = state
        self._show_state()

    def _show_state(self) -> None:
        if not self.superseded:
            self._metrics.set_engine_state(self.name, self.state)
