"""One call, from the name that it asks for to the answer on its way: what the name means, the cache, the budget, a slot.

Whatever can be refused is refused here, before the first byte. Which engines live and where names point is
`app.models.model_manager`'s; who is asked next after a failure is `app.models.tries`'.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from app.core.errors import AprendizError, Overloaded, ShuttingDown
from app.core.ids import uuid7
from app.core.metrics import Metrics
from app.core.settings import Model
from app.core.types import (
    EmbeddingRequest,
    Embeddings,
    GenerationRequest,
    Message,
    ModelSpec,
    Principal,
    Sampling,
    Usage,
    VersionInfo,
)
from app.models.aliases import DEFAULT, Aliases
from app.models.cache import Lease, Question, ResponseCache, key_of, repeatable
from app.models.costs import Hold, Ledger
from app.models.deployment import Deployment
from app.models.fitting import as_asked
from app.models.generation import Generation
from app.models.live import LiveGeneration, Work
from app.models.pool import Pool
from app.models.recording import Recording
from app.models.replay import Again, Replay
from app.models.routing import Names, Plan
from app.models.showing import shown
from app.models.stores import PredictionStore, Recall
from app.models.targets import Targets
from app.models.tries import Tries

logger = logging.getLogger(__name__)

_END_S = 15.0
_UNSET_TEMPERATURE = 1.0
"""What other people's models take where the caller names none."""
_TEXT: Final[Mapping[str, Any]] = {"type": "text"}


@dataclass(frozen=True, slots=True)
class Desk:
    """What calls go through. ``spawn`` runs what must outlive its caller; ``clock``: seconds, monotonic."""

    settings: Model
    names: Names
    aliases: Aliases
    pool: Pool
    targets: Targets
    store: PredictionStore
    metrics: Metrics
    clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    cache: ResponseCache | None = None
    ledger: Ledger | None = None
    recall: Recall | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    id: str
    request: GenerationRequest
    principal: Principal
    called_at: float
    created_at: datetime


class Calls:
    """All calls of a process for an answer, for vectors, or for a count of tokens."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._active: set[LiveGeneration] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopping = False

    @property
    def active(self) -> int:
        """Answers that models are giving now."""
        return len(self._active)

    async def generate(self, request: GenerationRequest, principal: Principal) -> Generation:
        """As `ModelManager.generate`."""
        called_at, created_at = self._desk.clock(), datetime.now(UTC)
        call = _Call(request.prediction_id or uuid7(), request, principal, called_at, created_at)
        try:
            self._check_running()
            plan = self._desk.names.plan(request.model, session_of(request, principal))
            call = await self._with_examples(call, plan)
            found = await self._look(call, plan)
            if isinstance(found, Recording):
                return self._again(call, plan, found)
            return await self._ask(call, plan, found)
        except AprendizError as error:
            self._desk.metrics.rejected.labels(error.slug).inc()
            raise

    async def embed(self, request: EmbeddingRequest, principal: Principal) -> tuple[Embeddings, str]:
        """As `ModelManager.embed`. Counts in the budgets of this process; there is no prediction to keep its price."""
        found, _version, name = await self.embed_version(request, principal)
        return found, name

    async def embed_version(self, request: EmbeddingRequest, principal: Principal) -> tuple[Embeddings, VersionInfo, str]:
        """As `embed`, with the version that made the vectors."""
        self._check_running()
        spec = await self._embedding_spec(request.model, principal)
        async with self._borrow(spec, principal) as deployment:
            hold, cost, ledger = Hold(), None, self._desk.ledger
            if ledger is not None:
                words = GenerationRequest(
                    tuple(Message("user", text) for text in request.inputs), sampling=Sampling(max_tokens=0)
                )
                hold = await ledger.admit(words, principal, [deployment.name], uuid7())
            try:
                vectors = await deployment.loaded.embed(request)
                if ledger is not None:
                    cost = ledger.cost(deployment.name, Usage(prompt_tokens=vectors.prompt_tokens))
            finally:
                hold.settle(cost, stored=False)
            return vectors, deployment.loaded.version, deployment.name

    async def _embedding_spec(self, model: str | None, principal: Principal) -> ModelSpec:
        """What makes vectors under the name ``model``: ``default`` is the configured embedder where the default model makes
        none."""
        names = self._desk.names
        spec = names.plan(model).candidates[0].spec
        if names.embedder is None or model not in (None, DEFAULT) or names.embedder == spec:
            return spec
        deployment = self._desk.pool.find(spec)
        if deployment is not None and deployment.version is not None:
            return spec if deployment.loaded.capabilities.embeddings else names.embedder
        async with self._borrow(spec, principal) as opened:  # only once it is loaded does anybody know
            return spec if opened.loaded.capabilities.embeddings else names.embedder

    async def count_tokens(self, request: GenerationRequest, principal: Principal) -> int:
        """As `ModelManager.count_tokens`."""
        spec = self._desk.names.plan(request.model).candidates[0].spec
        async with self._borrow(spec, principal) as deployment:
            return await deployment.loaded.count_tokens(as_asked(request, deployment.loaded, self._desk.settings))

    async def drain(self, grace_s: float) -> None:
        """Refuses what is new and what waits, lets what runs end for ``grace_s`` seconds, then ends it with `ShuttingDown`."""
        self._stopping = True
        if self._desk.cache is not None:
            self._desk.cache.refuse(shutting_down)
        for deployment in self._desk.pool.all():
            deployment.scheduler.refuse(shutting_down)
        try:
            async with asyncio.timeout(grace_s):
                await self._quiet.wait()
        except TimeoutError:
            late = list(self._active)
            logger.warning("answers cut at shutdown", extra={"data": {"count": len(late)}})
            for generation in late:
                generation.interrupt(shutting_down())
            try:
                async with asyncio.timeout(_END_S):
                    await self._quiet.wait()
            except TimeoutError:
                logger.error("answers did not end at shutdown", extra={"data": {"count": len(self._active)}})

    async def _with_examples(self, call: _Call, plan: Plan) -> _Call:
        """``call`` with the approved corrections that its question is like.

        Never for other people's models: what was said here does not leave the house. Nor where an answer has a form of its own.
        """
        desk, request = self._desk, call.request
        if desk.recall is None or request.no_examples or request.raw or request.sampling.tools:
            return call
        specs = _specs(plan)
        if (request.sampling.response_format or _TEXT).get("type") != "text" or any(map(desk.pool.is_remote, specs)):
            return call
        examples = await desk.recall.recall(request.messages, self._version_of(specs[0]))
        return dataclasses.replace(call, request=dataclasses.replace(request, examples=examples)) if examples else call

    async def _look(self, call: _Call, plan: Plan) -> Recording | Lease | None:
        """What the cache has: the answer, perhaps once another call has it; else the duty to answer. None: it is not asked."""
        cache, request = self._desk.cache, call.request
        if cache is None or not cache.enabled:
            return None
        specs = _specs(plan)
        if request.cache == "off" or (request.cache == "auto" and not self._repeatable(request, specs)):
            cache.bypass()
            return None
        versions = (self._version_of(spec) for spec in specs)
        return await cache.ask(
            Question(
                key=key_of(request, call.principal.user_id, [f"{spec.name}@{spec.adapter or ''}" for spec in specs]),
                user_id=call.principal.user_id,
                versions=frozenset(version for version in versions if version is not None),
                max_age_s=request.max_age_s,
                refresh=request.cache == "refresh",
            )
        )

    def _repeatable(self, request: GenerationRequest, specs: Sequence[ModelSpec]) -> bool:
        """Whether whichever target answers, it would say the same again."""
        sampling = request.sampling
        if sampling.temperature != 0 and sampling.seed is None and self._desk.settings.temperature != 0:
            return False
        for spec in specs:
            default = _UNSET_TEMPERATURE if self._desk.pool.is_remote(spec) else self._desk.settings.temperature
            deployment = self._desk.pool.find(spec)
            # Before it is loaded nobody knows; if it heeds no seed after all, its answer is kept, and never looked for.
            seeds = deployment is None or deployment.version is None or deployment.loaded.capabilities.seed
            if not repeatable(sampling, default, seeds=seeds):
                return False
        return True

    def _version_of(self, spec: ModelSpec) -> str | None:
        """What answers for ``spec`` now; before it is loaded, what did when an alias was last set."""
        deployment = self._desk.pool.find(spec)
        if deployment is not None and deployment.version is not None:
            return deployment.version.id
        records = (self._desk.aliases.targets[name].record for name in self._desk.aliases.names_of(spec))
        return next((record.version for record in records if record is not None), None)

    def _again(self, call: _Call, plan: Plan, recording: Recording) -> Replay:
        desk = self._desk
        again = Again(
            id=call.id,
            request=call.request,
            principal=call.principal,
            asked=plan.name,
            called_at=call.called_at,
            created_at=call.created_at,
            store=desk.store,
            metrics=desk.metrics,
            clock=desk.clock,
            spawn=desk.spawn,
        )
        return Replay(again, recording)

    async def _ask(self, call: _Call, plan: Plan, lease: Lease | None) -> LiveGeneration:
        """A slot at a model, and the money for it."""
        hold = Hold()
        try:
            if self._desk.ledger is not None:
                names = [each.spec.public_name for each in plan.candidates]
                hold = await self._desk.ledger.admit(shown(call.request), call.principal, names, call.id)
            tries = self._tries(call)
            await self._reserve(tries)
            return await self._live(call, tries, hold, lease)
        except BaseException:
            hold.settle(None)
            if lease is not None:
                lease.abandon()
            raise

    def _tries(self, call: _Call) -> Tries:
        # The plan is made anew: whoever waited for the cache may have been overtaken by a switch. From here to the place in the
        # queue there is no suspension.
        return Tries(
            self._desk.names.plan(call.request.model, session_of(call.request, call.principal)),
            call.request,
            call.principal.user_id,
            self._desk.targets,
            called_at=call.called_at,
            timeout_s=self._desk.settings.answer_timeout_s,
        )

    async def _reserve(self, tries: Tries) -> None:
        """The first slot, within the deadline of a route."""
        if tries.plan.deadline_s is None:
            await tries.reserve()
            return
        try:
            async with asyncio.timeout(max(tries.left_s(), 0.0)):
                await tries.reserve()
        except TimeoutError:
            detail = f"No slot became free within {tries.limit_s:g} seconds. Try again later."
            raise Overloaded(detail, retry_after=1) from None

    async def _live(self, call: _Call, tries: Tries, hold: Hold, lease: Lease | None) -> LiveGeneration:
        if self._stopping:
            await tries.aclose()
            raise shutting_down()
        desk = self._desk
        generation = LiveGeneration(
            Work(
                id=call.id,
                request=call.request,
                principal=call.principal,
                tries=tries,
                called_at=call.called_at,
                created_at=call.created_at,
                store=desk.store,
                metrics=desk.metrics,
                clock=desk.clock,
                spawn=desk.spawn,
                on_end=self._ended,
                price=_no_price if desk.ledger is None else desk.ledger.cost,
                hold=hold,
                lease=lease,
            )
        )
        self._active.add(generation)
        self._quiet.clear()
        return generation

    @asynccontextmanager
    async def _borrow(self, spec: ModelSpec, principal: Principal) -> AsyncIterator[Deployment]:
        """A slot at ``spec``, and at no other: vectors and tokens of two models do not mix."""
        try:
            self._check_running()
            async with self._desk.targets.borrow(spec, principal.user_id) as deployment:
                yield deployment
        except AprendizError as error:
            self._desk.metrics.rejected.labels(error.slug).inc()
            raise

    def _ended(self, generation: LiveGeneration) -> None:
        self._active.discard(generation)
        if not self._active:
            self._quiet.set()

    def _check_running(self) -> None:
        if self._stopping:
            raise shutting_down()


def _specs(plan: Plan) -> list[ModelSpec]:
    """All that might answer."""
    return [each.spec for each in plan.candidates] + ([] if plan.long_context is None else [plan.long_context])


def session_of(request: GenerationRequest, principal: Principal) -> str:
    """What stays with one version while a canary runs: the conversation, else the login, else the key, else the user."""
    return request.conversation_id or principal.session_id or principal.key_id or principal.user_id


def shutting_down() -> ShuttingDown:
    """What is raised once the service goes down."""
    return ShuttingDown("The service is shutting down. Try again in a moment.", retry_after=5)


def _no_price(_model: str, _usage: Usage) -> int | None:
    return None
