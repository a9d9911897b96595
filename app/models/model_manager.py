"""The one way to a model: `ModelManager.generate` resolves, loads, checks, queues and reserves; a `Generation` does the rest.

It joins three parts that know nothing of each other's work: `app.models.aliases` (which spec a name means), `app.models.pool`
(which engines live) and `app.models.scheduler` (who is next). It speaks no HTTP and knows no vendor.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, TypeVar

from app.core.errors import AprendizError, UnknownModel
from app.core.metrics import Metrics
from app.core.records import AliasRecord, VersionRecord
from app.core.settings import Memory, Model, Routing, Upstream
from app.core.types import EmbeddingRequest, Embeddings, GenerationRequest, ModelSpec, Principal, VersionInfo
from app.models.aliases import DEFAULT, Aliases, Guard, Order, anything
from app.models.aside import Aside
from app.models.cache import ResponseCache
from app.models.calls import Calls, Desk, shutting_down
from app.models.canary import CanaryKeeper
from app.models.costs import Ledger
from app.models.deployment import Deployment
from app.models.generation import Completed, Generation
from app.models.pool import Pool
from app.models.routing import Canary, ModelName, Names
from app.models.status import ManagerStatus, alias_status, why_not_ready
from app.models.stores import ModelStores, Providers, Recall
from app.models.targets import Targets
from app.models.trial import Trial, Trials
from app.models.versions import to_record

__all__ = ["Completed", "Generation", "ManagerStatus", "ModelManager", "ModelStores", "Trial"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_S = 2.0
_END_S = 15.0
_NO_ROUTES = Routing()
_BUDGETS = Memory()
_NO_NOTE: Mapping[str, Any] = MappingProxyType({})


class ModelManager:
    """Which model is where, and one prediction from start to stored end.

    Args:
        settings: section ``model``.
        providers: the registry.
        stores: the repositories that it writes to.
        metrics: the service's metrics.
        routing: section ``routing``.
        upstreams: ``providers.upstreams``.
        cache: answers to be given again; None: there are none.
        ledger: prices and budgets; None: nothing has a price.
        recall: approved corrections, to be shown with similar questions; None: none are.
        memory: budgets of what is recalled for a call.
        embedder: ``memory.embedder``, as ``provider/name``; empty: none.
        guard: who may serve; see `app.models.aliases.Guard`.
        clock: seconds, monotonic.
        rng: for weights and jitter.
    """

    def __init__(
        self,
        settings: Model,
        *,
        providers: Providers,
        stores: ModelStores,
        metrics: Metrics,
        routing: Routing = _NO_ROUTES,
        upstreams: Mapping[str, Upstream] = MappingProxyType({}),
        cache: ResponseCache | None = None,
        ledger: Ledger | None = None,
        recall: Recall | None = None,
        memory: Memory = _BUDGETS,
        embedder: str = "",
        guard: Guard = anything,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._metrics = metrics
        self._clock = clock
        self._pool = Pool(
            settings, providers, metrics, register=self._register, on_ready=self._on_ready, remote=upstreams, clock=clock
        )
        self._aliases = Aliases(settings, self._pool, stores, guard=guard)
        self._names = Names(routing, upstreams, self._aliases, answer_timeout_s=settings.answer_timeout_s, embedder=embedder)
        self._keeper = CanaryKeeper(self._pool, self._aliases, self._names)
        self._targets = Targets(
            settings,
            self._pool,
            metrics,
            clock=clock,
            rng=rng or random.Random(),  # noqa: S311  # spreads load, keeps no secret
            active=lambda: self._calls.active,
            heard=self._keeper.heard,
            spawn=self._spawn,
            memory=memory,
        )
        self._cache = cache
        self._recall = recall
        self._calls = Calls(
            Desk(
                settings=settings,
                names=self._names,
                aliases=self._aliases,
                pool=self._pool,
                targets=self._targets,
                store=stores.predictions,
                metrics=metrics,
                clock=clock,
                spawn=self._spawn,
                cache=cache,
                ledger=ledger,
                recall=recall,
            )
        )
        self.aside = Aside(settings, self._names, self._pool, self._targets, ledger)
        self._trials = Trials(settings, self._pool, serves=self._keeper.serves, users=self._users)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Reads the aliases and, with ``preload``, starts to load ``default`` in the background. A failed load is not fatal."""
        await self._aliases.load()
        self._names.check()
        for name in self._names.written():  # before callers make names up, where an upstream takes any: labels are few
            self._metrics.model_label(name, configured=True)
        self._ticker = asyncio.create_task(self._tick_forever(), name="models ticker")
        if self._settings.preload:
            self._load(self._aliases.targets[DEFAULT].spec)

    async def generate(self, request: GenerationRequest, principal: Principal) -> Generation:
        """Reserves a slot for one call; whatever can be refused is refused here.

        Raises:
            UnknownModel: no such alias or deployed model; the text lists what there is.
            EngineUnavailable: the model cannot be loaded now, or its engine restarts; the text says why.
            QueueFullForUser, Overloaded: no room in the queue, or no slot in time; with ``retry_after``.
            InvalidRequest: the model cannot take this request.
            ShuttingDown: the service is going down.
        """
        return await self._calls.generate(request, principal)

    async def embed(self, request: EmbeddingRequest, principal: Principal) -> tuple[Embeddings, str]:
        """The vectors, and the name of the model that made them. Raises as `generate`, and InvalidRequest where the model makes
        none."""
        return await self._calls.embed(request, principal)

    async def embed_version(self, request: EmbeddingRequest, user_id: str) -> tuple[Embeddings, VersionInfo, str]:
        """As `embed`, for memory and in the user's turn: with the version that made the vectors. Budgets apply."""
        principal = Principal(user_id=user_id, username="", role="user", scopes=frozenset(), via="token")
        return await self._calls.embed_version(request, principal)

    async def count_tokens(self, request: GenerationRequest, principal: Principal) -> int:
        """Prompt tokens of ``request`` as the first target that its name stands for counts them. Raises as `generate`."""
        return await self._calls.count_tokens(request, principal)

    def names(self) -> list[ModelName]:
        """Every name that callers may ask for; what upstreams expose by pattern is not listed."""
        return self._names.all()

    async def answer(self, request: GenerationRequest, principal: Principal) -> Completed:
        """A whole answer: the same generator, folded. Raises as `generate` and `Generation.events`."""
        async with await self.generate(request, principal) as generation:
            return await generation.completed()

    async def switch(self, spec: ModelSpec, *, actor: Principal | None, alias: str = DEFAULT) -> AliasRecord:
        """Loads ``spec``, points ``alias`` at it, lets the old one finish. When it returns, no new request goes to the old one.

        A caller who leaves does not stop it half-way.

        Raises:
            Conflict: another change of that alias runs.
            NotPromotable: it may not serve.
            UnknownModel, ModelLoadFailed, Overloaded, StorageUnavailable: nothing has changed; the old one serves on.
        """
        return await self._to_the_end(self._aliases.switch(alias, spec, actor=actor))

    async def reload(self, *, actor: Principal | None) -> AliasRecord:
        """A fresh engine of what ``default`` means. Raises as `switch`."""
        return await self._to_the_end(self._aliases.reload(DEFAULT, actor=actor))

    async def promote(self, version: str, *, actor: Principal | None, note: Mapping[str, Any] = _NO_NOTE) -> AliasRecord:
        """Points ``default`` at a version that was loaded here before. ``note``: for the audit line.

        Raises NotFound for another, and as `switch`."""
        order = Order("model.promote", actor, note=note)
        return await self._to_the_end(self._aliases.promote(DEFAULT, version, order))

    async def promote_spec(self, spec: ModelSpec, *, version: str, actor: Principal | None) -> AliasRecord:
        """Loads ``spec`` and points ``default`` at it, if what was loaded is ``version``: else ModelLoadFailed. Raises as
        `switch`."""
        return await self._to_the_end(self._aliases.promote_spec(DEFAULT, spec, Order("model.promote", actor, version)))

    async def rollback(
        self, *, actor: Principal | None, note: Mapping[str, Any] = _NO_NOTE, anywhere: bool = False
    ) -> AliasRecord:
        """Points ``default`` at what it meant before its last move; again, at what it meant before that.

        ``note``, ``anywhere``: as `app.models.aliases.Order` and `Aliases.rollback`. Raises Conflict where there is nothing
        before, NotPromotable where nothing before may serve, and as `switch`."""
        order = Order("model.rollback", actor, note=note)
        return await self._to_the_end(self._aliases.rollback(DEFAULT, order, anywhere=anywhere))

    async def spec_of(self, version: str) -> ModelSpec:
        """What must be loaded for a version that has been loaded here before. Raises NotFound for any other."""
        return await self._aliases.to_load(version)

    async def start_canary(self, canary: Canary) -> str:
        """Loads both sides and lets ``canary`` answer its share of sessions; returns the version of the other side.

        Raises Conflict where one is set already, else as `switch`: nothing has changed."""
        return await self._to_the_end(self._keeper.start(canary))

    def set_canary(self, canary: Canary | None) -> None:
        """Lets ``canary`` answer its share of the sessions of its alias from now on; None: nobody but what the alias means.

        Loads nothing: that is `start_canary`'s, or the first session's."""
        stale = self._keeper.set(canary)
        if stale is not None and self._cache is not None:
            self._spawn(self._cache.purge(stale))

    def preload_canary(self) -> None:
        """Starts to load the canary in the background, as after a restart. A failed load is not fatal."""
        if self._names.canary is not None:
            self._load(self._names.canary.spec)

    def trial(self, spec: ModelSpec) -> AbstractAsyncContextManager[Trial]:
        """A version on the served stack beside what serves, for as long as the block lasts: no alias means it, nobody else is
        answered by it, nothing of its answers is kept. ``max_loaded`` does not refuse it; nothing that serves goes for it.

        Raises:
            UnknownModel, ModelLoadFailed, EngineUnavailable: it cannot be loaded.
        """
        return self._trials.open(spec)

    def current(self, alias: str = DEFAULT) -> tuple[ModelSpec, str | None]:
        """What an alias means now, and the id of its version once that is known. Raises UnknownModel for no such alias."""
        target = self._aliases.targets.get(alias)
        if target is None:
            raise UnknownModel(f"There is no alias {alias[:100]!r}.", field="alias")
        deployment = self._pool.find(target.spec)
        if deployment is not None and deployment.version is not None:
            return target.spec, deployment.version.id
        return target.spec, None if target.record is None else target.record.version

    def record(self, alias: str = DEFAULT) -> AliasRecord | None:
        """The row of an alias, once what it means has been loaded."""
        target = self._aliases.targets.get(alias)
        return None if target is None else target.record

    def busy(self) -> bool:
        """Whether anybody (trials excepted) is being served now, or waits."""
        return self._users() > 0

    def _users(self) -> int:
        held = sum(each.scheduler.running + each.scheduler.waiting for each in self._pool.all())
        return max(held - self._trials.running, 0)

    async def versions(self) -> list[VersionRecord]:
        """All versions that have been loaded here."""
        return await self._stores.versions.list()

    async def forget_answers(self, user_id: str) -> None:
        """Gives no answer again that this user had before: to be called when the user deletes one. Examples that were made of
        what is deleted are not shown any more."""
        if self._recall is not None:
            await self._recall.refresh()
        if self._cache is not None:
            await self._cache.purge_user(user_id)

    async def forget_all_answers(self) -> None:
        """Gives no answer again, to nobody: after a person was erased, whose words others may have been answered with."""
        if self._recall is not None:
            await self._recall.refresh()
        if self._cache is not None:
            await self._cache.purge_all()

    def status(self) -> ManagerStatus:
        """Everything to show, without waiting."""
        pool, now = self._pool, self._clock()
        aliases = tuple(
            alias_status(name, target, pool.find(target.spec), pool.failure(target.spec), now)
            for name, target in self._aliases.targets.items()
        )
        default = next(each for each in aliases if each.name == DEFAULT)
        reason = "The service is shutting down." if self._stopping else why_not_ready(default)
        engines = tuple(each.status() for each in self._pool.all())
        return ManagerStatus(
            ready=reason is None,
            reason=reason,
            draining=self._stopping,
            aliases=aliases,
            engines=engines,
            running=sum(each.running for each in engines),
            waiting=sum(each.waiting for each in engines),
            canary=self._keeper.status(),
        )

    async def drain(self, grace_s: float) -> None:
        """Refuses what is new and what waits, lets what runs end for ``grace_s`` seconds, then ends it with `ShuttingDown`."""
        self._stopping = True
        self._trials.stop()
        await self._calls.drain(grace_s)

    async def aclose(self) -> None:
        """Ends everything now: answers, loads, engines. Never raises; may be called twice."""
        await self.drain(0)
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        await self._pool.aclose()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_END_S)

    async def _to_the_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Runs a change of an alias so that a caller who leaves does not stop it half-way."""
        if self._stopping:
            change.close()
            raise shutting_down()
        return await asyncio.shield(self._spawn(self._purging(change)))

    async def _purging(self, change: Coroutine[Any, Any, T]) -> T:
        """After a change of an alias: no answer is given again of a version that no alias means any more."""
        before = self._keeper.meant()
        try:
            return await change
        finally:
            if self._cache is not None:
                for version in before - self._keeper.meant():
                    await self._cache.purge(version)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, AprendizError):
            logger.error("A background task failed.", exc_info=error)

    async def _register(self, spec: ModelSpec, version: VersionInfo) -> None:
        self._keeper.check(spec, version)
        await self._aliases.check_loaded(spec, version)
        await self._stores.versions.put(to_record(spec, version))

    def _on_ready(self, deployment: Deployment) -> None:
        self._keeper.note(deployment)
        self._spawn(self._purging(self._aliases.note_loaded(deployment)))

    def _load(self, spec: ModelSpec) -> None:
        try:
            self._pool.get(spec)
        except AprendizError as error:
            data = {"model": spec.public_name, "error": error.slug, "detail": error.detail}
            logger.warning("model not loaded", extra={"data": data})

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                self.tick()
            except Exception:
                logger.exception("The models' ticker failed; it goes on.")

    def tick(self) -> None:
        """What happens by itself every two seconds: idle engines go, and a failed preload is tried again after its cool-down.

        Without the second a service that a load balancer has taken out, because it is not ready, would never hear a request
        that makes it ready.
        """
        if self._stopping:
            return
        self._pool.sweep()
        if self._cache is not None:
            self._spawn(self._cache.sweep())
        for deployment in self._pool.all():
            self._targets.show_breaker(deployment)
        default = self._aliases.targets[DEFAULT].spec
        failure = self._pool.failure(default)
        if self._settings.preload and failure is not None and failure.until <= self._clock():
            self._load(default)
