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
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypeVar

from app.core.errors import AprendizError, UnknownModel
from app.core.metrics import Metrics
from app.core.records import AliasRecord, VersionRecord
from app.core.settings import Model, Routing, Upstream
from app.core.types import EmbeddingRequest, Embeddings, EngineState, GenerationRequest, ModelSpec, Principal, VersionInfo
from app.models.aliases import DEFAULT, Aliases, Target
from app.models.cache import ResponseCache
from app.models.calls import Calls, Desk, shutting_down
from app.models.costs import Ledger
from app.models.deployment import Deployment
from app.models.generation import Completed, Generation
from app.models.pool import Pool
from app.models.routing import ModelName, Names
from app.models.status import AliasStatus, ManagerStatus
from app.models.stores import ModelStores, Providers, Recall
from app.models.targets import Targets
from app.models.trial import Trial, Trials

__all__ = ["Completed", "Generation", "ManagerStatus", "ModelManager", "ModelStores", "Trial"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_S = 2.0
_END_S = 15.0
_NO_ROUTES = Routing()


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
        self._aliases = Aliases(settings, self._pool, stores)
        self._names = Names(routing, upstreams, self._aliases, answer_timeout_s=settings.answer_timeout_s)
        self._targets = Targets(
            settings,
            self._pool,
            metrics,
            clock=clock,
            rng=rng or random.Random(),  # noqa: S311  # spreads load, keeps no secret
            active=lambda: self._calls.active,
            spawn=self._spawn,
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
        self._trials = Trials(settings, self._pool, serves=lambda spec: bool(self._aliases.names_of(spec)), users=self._users)
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
            self._load_default()

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
            UnknownModel, ModelLoadFailed, Overloaded, StorageUnavailable: nothing has changed; the old one serves on.
        """
        return await self._to_the_end(self._aliases.switch(alias, spec, actor=actor))

    async def reload(self, *, actor: Principal | None) -> AliasRecord:
        """A fresh engine of what ``default`` means. Raises as `switch`."""
        return await self._to_the_end(self._aliases.reload(DEFAULT, actor=actor))

    async def promote(self, version: str, *, actor: Principal | None) -> AliasRecord:
        """Points ``default`` at a version that was loaded here before. Raises NotFound for another, and as `switch`."""
        return await self._to_the_end(self._aliases.promote(DEFAULT, version, actor=actor))

    async def promote_spec(self, spec: ModelSpec, *, version: str, actor: Principal | None) -> AliasRecord:
        """Loads ``spec`` and points ``default`` at it, if what was loaded is ``version``: else ModelLoadFailed. Raises as
        `switch`."""
        return await self._to_the_end(self._aliases.promote_spec(DEFAULT, spec, version, actor=actor))

    async def rollback(self, *, actor: Principal | None) -> AliasRecord:
        """Points ``default`` at what it meant before. Raises Conflict where there is nothing before, and as `switch`."""
        return await self._to_the_end(self._aliases.rollback(DEFAULT, actor=actor))

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
        aliases = tuple(self._alias_status(name, target) for name, target in self._aliases.targets.items())
        default = next(each for each in aliases if each.name == DEFAULT)
        reason = self._why_not_ready(default)
        engines = tuple(each.status() for each in self._pool.all())
        return ManagerStatus(
            ready=reason is None,
            reason=reason,
            draining=self._stopping,
            aliases=aliases,
            engines=engines,
            running=sum(each.running for each in engines),
            waiting=sum(each.waiting for each in engines),
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
        before = self._aliases.versions()
        try:
            return await change
        finally:
            if self._cache is not None:
                for version in before - self._aliases.versions():
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
        details = {**version.details, "context_tokens": version.context_tokens, "device": spec.device, "adapter": spec.adapter}
        public = spec.public_name.partition("/")[2]
        if public != spec.model:
            details["spec_model"] = spec.model
        await self._stores.versions.put(
            VersionRecord(
                id=version.id,
                provider=spec.provider,
                model=public,
                base_hash=version.base_hash,
                adapter_hash=version.adapter_hash,
                template_hash=version.template_hash,
                created_at=datetime.now(UTC),
                details=details,
            )
        )

    def _on_ready(self, deployment: Deployment) -> None:
        self._spawn(self._purging(self._aliases.note_loaded(deployment)))

    def _load_default(self) -> None:
        try:
            self._pool.get(self._aliases.targets[DEFAULT].spec)
        except AprendizError as error:
            logger.warning("default model not loaded", extra={"data": {"error": error.slug, "detail": error.detail}})

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
        failure = self._pool.failure(self._aliases.targets[DEFAULT].spec)
        if self._settings.preload and failure is not None and failure.until <= self._clock():
            self._load_default()

    def _alias_status(self, name: str, target: Target) -> AliasStatus:
        spec, deployment, failure = target.spec, self._pool.find(target.spec), self._pool.failure(target.spec)
        provider, _, model = spec.public_name.partition("/")
        state = EngineState.STOPPED if deployment is None else deployment.state
        if deployment is None and failure is not None:
            state = EngineState.FAILED
        version = deployment.version if deployment is not None else None
        return AliasStatus(
            name=name,
            provider=provider,
            model=model,
            device=spec.device,
            version=version.id if version is not None else target.record.version if target.record is not None else None,
            state=state,
            error=None if failure is None or state is EngineState.READY else failure.error.detail,
            retry_in_s=None if failure is None or state is not EngineState.FAILED else max(failure.until - self._clock(), 0.0),
        )

    def _why_not_ready(self, default: AliasStatus) -> str | None:
        if self._stopping:
            return "The service is shutting down."
        match default.state:
            case EngineState.READY:
                return None
            case EngineState.STOPPED:
                # Not loaded, and nothing stands against loading it with the first request.
                return None
            case EngineState.STARTING:
                return "The model is being loaded."
            case EngineState.RESTARTING:
                return "The model engine is being restarted."
            case _:
                return default.error or "The model engine is not available."
