"""A version on trial: loaded on the served stack beside what serves, asked by the gate, and by nobody else.

A trial's answers go through the deployment's scheduler like any call, and behind every user: they take a slot only where nobody
waits. They leave no prediction, are kept by no cache and cost no budget. Nothing here judges an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from app.core.errors import EngineUnavailable, Overloaded, ShuttingDown, UpstreamTimeout
from app.core.settings import Model
from app.core.types import Answer, EngineState, Event, Folder, GenerationRequest, ModelSpec, VersionInfo
from app.models.deployment import Deployment
from app.models.fitting import as_asked, fit
from app.models.pool import Pool
from app.models.scheduler import Ticket
from app.models.showing import shown
from app.providers.base import Capabilities, Scores

logger = logging.getLogger(__name__)

_USER: Final = "trial"
"""The user of trials in a scheduler's eyes; ids of users are UUIDs."""
_POLL_S: Final = 0.05
_LONGEST_WAIT_S: Final = 900.0
_CLOSE_S: Final = 10.0


class Trial:
    """One version, for as long as its block lasts. Several answers may be asked for at once; each waits for its slot."""

    def __init__(self, deployment: Deployment, trials: Trials) -> None:
        self.version: VersionInfo = deployment.loaded.version
        self.capabilities: Capabilities = deployment.loaded.capabilities
        self._deployment = deployment
        self._trials = trials

    async def answer(self, request: GenerationRequest) -> Answer:
        """A whole answer, as a user of this version would get it: with the service's defaults.

        Raises:
            InvalidRequest, ContextOverflow: the model cannot take the request.
            Overloaded: users left it no slot for a quarter of an hour.
            EngineUnavailable, UpstreamError, UpstreamTimeout, ShuttingDown: no whole answer came.
        """
        fitted = await fit(request, self._deployment.loaded, self._trials.settings)
        async with self._trials.slot(self._deployment):
            return await self._fold(shown(fitted))

    async def score(self, request: GenerationRequest, completion: str) -> Scores:
        """`LoadedModel.score` of ``completion`` under the prompt that a user's answer would have. Raises as `answer`."""
        async with self._trials.slot(self._deployment):
            return await self._deployment.loaded.score(self._asked(request), completion)

    async def prompt(self, request: GenerationRequest) -> str:
        """`LoadedModel.prompt`: the templated prompt. Raises as it does."""
        return await self._deployment.loaded.prompt(self._asked(request))

    def _asked(self, request: GenerationRequest) -> GenerationRequest:
        return shown(as_asked(request, self._deployment.loaded, self._trials.settings))

    async def _fold(self, request: GenerationRequest) -> Answer:
        folder = Folder()
        stream = self._deployment.loaded.batches(request)
        try:
            async for batch in stream:
                _note(folder, batch)
        finally:
            # Ends the work in the engine; one that does not let go must not hold the gate for ever.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await stream.aclose()
        return folder.answer()


class Trials:
    """All trials of a process.

    Args:
        settings: section ``model``.
        pool: the deployments.
        serves: whether an alias means a spec, or sessions are sent to it: it is never evicted for a trial.
        users: how many calls of users run and wait now.
    """

    def __init__(self, settings: Model, pool: Pool, *, serves: Callable[[ModelSpec], bool], users: Callable[[], int]) -> None:
        self.settings = settings
        self._pool = pool
        self._serves = serves
        self._users = users
        self._running: dict[Deployment, int] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        """Slots that trials hold now."""
        return sum(self._running.values())

    def stop(self) -> None:
        """Lets no trial take a slot any more."""
        self._stopping = True

    @asynccontextmanager
    async def open(self, spec: ModelSpec) -> AsyncIterator[Trial]:
        """As `ModelManager.trial`."""
        known = self._pool.find(spec) is not None
        deployment = self._pool.obtain(spec, beside=self._serves)
        deployment.pin()
        deployment.trials += 1
        try:
            await deployment.ready()
            yield Trial(deployment, self)
        finally:
            deployment.trials -= 1
            deployment.unpin()
            if not known and deployment.pins == 0 and not self._serves(spec):
                self._pool.discard(deployment)

    @asynccontextmanager
    async def slot(self, deployment: Deployment) -> AsyncIterator[None]:
        """A slot for one question, for at most ``answer_timeout_s``. Raises as `Trial.answer`."""
        ticket = await self._acquire(deployment)
        self._running[deployment] = self._running.get(deployment, 0) + 1
        try:
            async with asyncio.timeout(self.settings.answer_timeout_s):
                yield
        except TimeoutError:
            raise UpstreamTimeout("The model did not answer in time. See model.answer_timeout_s.") from None
        finally:
            self._running[deployment] -= 1
            if self._running[deployment] == 0:
                del self._running[deployment]
            deployment.scheduler.release(ticket)

    async def _acquire(self, deployment: Deployment) -> Ticket:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not self._may_take(deployment):
            if self._stopping:
                raise ShuttingDown("The service is shutting down. Try again in a moment.", retry_after=5)
            if deployment.state in (EngineState.FAILED, EngineState.STOPPED):
                raise EngineUnavailable("The engine of the version on trial stopped. Try again.", retry_after=5)
            if time.monotonic() >= deadline:
                raise Overloaded("Users left no slot for the version on trial. Try again when less is asked.", retry_after=60)
            # Looked at again and again, and not waited for in the queue: there it would stand before users who come later.
            await asyncio.sleep(_POLL_S)
        # Nobody waits and a slot is free, so this takes it without a suspension.
        return await deployment.scheduler.acquire(_USER)

    def _may_take(self, deployment: Deployment) -> bool:
        scheduler = deployment.scheduler
        if self._stopping or scheduler.waiting or scheduler.running >= scheduler.slots:
            return False
        # While anybody is served, one slot is left to whoever comes next.
        most = scheduler.slots - 1 if self._users() else scheduler.slots
        return self._running.get(deployment, 0) < most


def _note(folder: Folder, batch: Sequence[Event]) -> None:
    for event in batch:
        folder.add(event)
