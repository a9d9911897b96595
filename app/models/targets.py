"""One target asked once: its breaker, its slot, its answer, and what came of it.

`Targets` is what all calls of a process share: it lets a call in at one target, or says why not. It chooses no target:
`app.models.tries` does.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from app.core.errors import (
    AprendizError,
    EngineUnavailable,
    InvalidRequest,
    ModelLoadFailed,
    UnknownModel,
    UpstreamBusy,
    UpstreamCoolingDown,
    UpstreamError,
    UpstreamTimeout,
)
from app.core.metrics import Metrics
from app.core.settings import FallbackClass, Memory, Model
from app.core.types import Event, GenerationRequest, ModelSpec
from app.models.deployment import Deployment
from app.models.fitting import fit
from app.models.pool import Pool
from app.models.resilience import BreakerState, Permit, RetryBudget, class_of, is_failure
from app.models.scheduler import Ticket
from app.models.showing import shown

logger = logging.getLogger(__name__)

_LOAD_RETRY_S: Final = 5.0
_CLOSE_S: Final = 10.0

Verdict = AprendizError | Literal["ok", "cancelled"]
"""What came of an attempt."""


class Attempt:
    """A call at one target: it holds a slot from the start until `aclose`. One reader at a time."""

    def __init__(
        self, deployment: Deployment, ticket: Ticket, request: GenerationRequest, permit: Permit | None, targets: Targets
    ) -> None:
        self.deployment = deployment
        self.ticket = ticket
        self.request = request
        """The request as this target gets it: with its defaults, within its limits; `app.models.showing.shown` writes
        examples and context out."""
        self.begun_at: float | None = None
        """When the target heard of it, if it has."""
        self._stream: AsyncGenerator[Sequence[Event], None] | None = None
        self._permit = permit
        self._targets = targets
        self._judged = False
        self._whole = False

    async def first(self) -> Sequence[Event]:
        """The first events. Raises AprendizError: the provider's; UpstreamError where there are none, or for its bugs."""
        self.begun_at = self._targets.clock()
        self._stream = self.deployment.loaded.batches(shown(self.request))
        try:
            batch = await self.next()
        except AprendizError:
            raise
        except Exception as error:
            raise self.unexpected(error) from error
        if batch is None:
            raise UpstreamError("The answer was cut off before its end. Try again.")
        if self._permit is not None and self.deployment.breaker is not None:
            self.deployment.breaker.answering(self._permit)
        return batch

    def next(self) -> Awaitable[Sequence[Event] | None]:
        """The next events, or None at the end. Raises whatever the provider does; see `unexpected`."""
        assert self._stream is not None  # noqa: S101  # `first` came first
        return anext(self._stream, None)

    def unexpected(self, error: Exception) -> UpstreamError:
        """What to raise in place of an exception that is none of ours: the provider's fault, in our words."""
        data = {"model": self.deployment.name}
        logger.error("A provider failed unexpectedly.", exc_info=error, extra={"data": data})
        return UpstreamError("The model failed unexpectedly. Try again.")

    def judge(self, verdict: Verdict) -> None:
        """Says what came of it, to the breaker and the metrics. Only the first call counts."""
        if not self._judged:
            self._judged, self._whole = True, verdict == "ok"
            self._targets.judged(self.deployment, self._permit, verdict)

    async def aclose(self) -> None:
        """Ends the work in the engine and frees the slot. Never raises; may be called twice."""
        self.judge("cancelled")
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                await self._end(stream)
        finally:
            self.deployment.scheduler.release(self.ticket)

    async def _end(self, stream: AsyncGenerator[Sequence[Event], None]) -> None:
        try:
            if self._whole:
                # Nothing is left to be ended there: a limit would take longer than this.
                await stream.aclose()
                return
            async with asyncio.timeout(_CLOSE_S):
                await stream.aclose()
        except Exception:
            logger.exception("A provider did not let go of a request.", extra={"data": {"model": self.deployment.name}})


class Targets:
    """What all calls share on their way to a target.

    Args:
        settings: section ``model``.
        pool: the deployments.
        metrics: where attempts, fallbacks and breakers go.
        clock: seconds, monotonic.
        rng: for weights and jitter.
        active: how many calls are in flight, for the retry budget.
        heard: takes the outcome of each attempt, with what was asked: None where it was answered.
        spawn: runs what must outlive its caller.
        memory: budgets of what is recalled.
    """

    def __init__(
        self,
        settings: Model,
        pool: Pool,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        active: Callable[[], int],
        heard: Callable[[ModelSpec, AprendizError | None], None] = lambda _spec, _error: None,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        memory: Memory,
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._pool = pool
        self._active = active
        self._heard = heard
        self._budget = RetryBudget()
        self._shown: dict[str, BreakerState] = {}
        self.metrics = metrics
        self.clock = clock
        self.rng = rng
        self.spawn = spawn

    async def reserve(self, spec: ModelSpec, request: GenerationRequest, user_id: str) -> Attempt:
        """Waits for a slot at ``spec``, which is loaded if it was not.

        Raises:
            UpstreamCoolingDown: it failed too often, or asked for a pause; with ``retry_after``.
            EngineUnavailable: it cannot be loaded now, or its engine restarts; the text says why.
            QueueFullForUser, Overloaded: no room in the queue, or no slot in time; with ``retry_after``.
            InvalidRequest, ContextOverflow: it cannot take this request.
        """
        try:
            deployment, ticket = await self._slot(spec, user_id)
        except AprendizError as error:
            self._heard(spec, error)
            raise
        try:
            fitted = await fit(request, deployment.loaded, self._settings, self._memory)
            return Attempt(deployment, ticket, fitted, self._permit(deployment), self)
        except BaseException:
            deployment.scheduler.release(ticket)
            raise

    @asynccontextmanager
    async def borrow(self, spec: ModelSpec, user_id: str) -> AsyncIterator[Deployment]:
        """A slot at ``spec`` for anything that is no generation, for at most ``answer_timeout_s``. Raises as `reserve`, and
        UpstreamTimeout."""
        deployment, ticket = await self._slot(spec, user_id)
        permit: Permit | None = None
        verdict: Verdict = "cancelled"
        try:
            permit = self._permit(deployment)
            async with asyncio.timeout(self._settings.answer_timeout_s):
                yield deployment
            verdict = "ok"
        except TimeoutError:
            verdict = UpstreamTimeout("The model did not answer in time. Try again with less.")
            raise verdict from None
        except AprendizError as error:
            verdict = error
            raise
        finally:
            deployment.scheduler.release(ticket)
            self.judged(deployment, permit, verdict)

    def open_requests(self, spec: ModelSpec) -> int:
        """How many requests of this process are at ``spec`` or wait for it."""
        deployment = self._pool.find(spec)
        return 0 if deployment is None else deployment.scheduler.running + deployment.scheduler.waiting

    def opened_by(self, spec: ModelSpec) -> FallbackClass | None:
        """The failure for which ``spec`` was last left alone."""
        deployment = self._pool.find(spec)
        return None if deployment is None or deployment.breaker is None else deployment.breaker.reason

    def may_retry(self) -> bool:
        """Takes a place in the retry budget; `retried` gives it back."""
        return self._budget.enter(self._active())

    def retried(self) -> None:
        """Gives the place of one retry back."""
        self._budget.leave()

    def judged(self, deployment: Deployment, permit: Permit | None, verdict: Verdict) -> None:
        """Takes the outcome of an attempt."""
        if verdict != "cancelled":
            self._heard(deployment.spec, None if verdict == "ok" else verdict)
        if verdict == "ok":
            self.metrics.of_model(deployment.label).attempted.inc()
        else:
            self.metrics.attempts.labels(deployment.label, _outcome(verdict)).inc()
        breaker = deployment.breaker
        if breaker is None or permit is None:
            return
        now = self.clock()
        if verdict == "cancelled":
            breaker.withdraw(permit)
        elif isinstance(verdict, UpstreamBusy) and verdict.retry_after is not None:
            breaker.cool(permit, now, verdict.retry_after)
        elif isinstance(verdict, AprendizError) and is_failure(verdict):
            if breaker.failed(permit, now, class_of(verdict) or "error"):
                data = {"model": deployment.name, "error": verdict.slug, "seconds": round(breaker.wait_s(now))}
                logger.warning("a model provider failed too often and is left alone", extra={"data": data})
        else:
            breaker.succeeded(permit)
        self.show_breaker(deployment)

    def show_breaker(self, deployment: Deployment) -> None:
        """Puts the state of its breaker into the metrics, where it has changed."""
        if deployment.breaker is None:
            return
        state = deployment.breaker.state(self.clock())
        if state is not self._shown.get(deployment.label):
            self._shown[deployment.label] = state
            self.metrics.breaker_state.labels(deployment.label).set(state.value)

    async def _slot(self, spec: ModelSpec, user_id: str) -> tuple[Deployment, Ticket]:
        # From here to the place in the queue there is no suspension: a switch either sees this request on the old engine, and
        # lets it finish there, or the request sees the new one.
        try:
            deployment = self._pool.get(spec)
            self._check_breaker(deployment)
            ticket = await deployment.scheduler.acquire(user_id)
        except (ModelLoadFailed, UnknownModel) as error:
            # The caller's request is fine and its model is known: what cannot be loaded is the operator's, for now.
            raise EngineUnavailable(
                f"The model cannot be loaded now. {error.detail}", retry_after=error.retry_after or _LOAD_RETRY_S
            ) from error
        self.metrics.of_model(deployment.label).queue_seconds.observe(ticket.waited_s)
        return deployment, ticket

    def _permit(self, deployment: Deployment) -> Permit | None:
        if deployment.breaker is None:
            return None
        permit = deployment.breaker.enter(self.clock())
        if permit is None:
            raise self._cooling_down(deployment)
        return permit

    def _check_breaker(self, deployment: Deployment) -> None:
        if deployment.breaker is not None and deployment.breaker.wait_s(self.clock()) > 0:
            raise self._cooling_down(deployment)

    def _cooling_down(self, deployment: Deployment) -> UpstreamCoolingDown:
        assert deployment.breaker is not None  # noqa: S101  # both callers have looked
        return UpstreamCoolingDown(
            "The model provider failed too often, or asked for a pause. Try again later.",
            retry_after=deployment.breaker.wait_s(self.clock()),
        )


def _outcome(verdict: Verdict) -> str:
    if not isinstance(verdict, AprendizError):
        return verdict
    return class_of(verdict) or ("invalid" if isinstance(verdict, InvalidRequest) else "other")
