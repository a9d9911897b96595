"""Which version people are answered by: promotion, canary, rollback, and what live feedback does about them by itself.

All routes and commands that change ``default`` come through here. Who may serve at all is `app.training.rules`'; the move
itself, without a dropped request, is `app.models.model_manager`'s, which asks the rules again. Nothing here trains or measures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from app.core.errors import AprendizError, Conflict, Forbidden, InvalidRequest, NotPromotable
from app.core.metrics import Metrics
from app.core.records import AliasRecord, CanaryRecord
from app.core.types import ModelSpec, Principal
from app.models.model_manager import ModelManager
from app.models.stores import AuditLog
from app.training.canary import LiveStores, LiveTrials
from app.training.chronicle import Chronicle
from app.training.live import LiveJudge, counts_of
from app.training.rules import Rules

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEAST_SHARE: Final = 0.01
MOST_SHARE: Final = 0.5
MOST_REASON: Final = 500
_TICK_S: Final = 3.0
_LOCK_S: Final = 1.0
"""Longer than a look at the votes takes; a change that loads a model is not waited for."""
_END_S: Final = 30.0


class Promotion:
    """The one way to ``default``.

    Args:
        models: who serves.
        rules: who may; the guard of ``models`` too.
        stores: canaries and votes.
        audit: the audit log.
        metrics: where promotions are counted.
    """

    def __init__(self, models: ModelManager, *, rules: Rules, stores: LiveStores, audit: AuditLog, metrics: Metrics) -> None:
        self._models = models
        self._rules = rules
        self._chronicle = Chronicle(audit, rules, metrics)
        self._trials = LiveTrials(models, rules, stores, self._chronicle)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Goes on with the canary, or the watch over a promotion, that ran when the service ended; judges every few seconds.

        Call it after ``models`` has started. Raises StorageUnavailable.
        """
        await self._trials.start()
        self._ticker = asyncio.create_task(self._tick_forever(), name="promotion ticker")

    async def aclose(self) -> None:
        """Ends the judging; a canary goes on with the next start. Never raises; may be called twice."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_END_S)

    async def promote(
        self, version: str, *, actor: Principal | None, share: float | None = None, override: str | None = None
    ) -> AliasRecord | CanaryRecord:
        """Lets ``default`` mean ``version``; with ``share``, lets it answer that share of the sessions, on trial.

        Args:
            version: one that has been loaded here.
            actor: who orders it; None: the service itself, after a gate that was passed.
            share: from 0.01 to 0.5.
            override: why an admin insists although the gate failed, or people liked it less; it is kept with the run.

        Raises:
            NotFound: no such version. NotPromotable: it may not serve. InvalidRequest, Forbidden: a bad share, reason or actor.
            Conflict: a canary runs already, another change is under way, or it serves already.
            ModelLoadFailed, Overloaded, StorageUnavailable: nothing has changed.
        """
        if share is not None and not LEAST_SHARE <= share <= MOST_SHARE:
            raise InvalidRequest(f"share must be from {LEAST_SHARE} to {MOST_SHARE}; leave it out for all.", field="share")
        if override is not None:
            _check_override(override, actor)
        return await self._to_the_end(self._promote(version, actor, share, override))

    async def rollback(self, *, actor: Principal | None) -> AliasRecord:
        """Lets ``default`` mean what it meant before; again, what it meant before that. A canary that runs ends first, and
        where there is nothing before, its end is the rollback.

        Raises Conflict, NotPromotable and the rest as `ModelManager.rollback`.
        """
        return await self._to_the_end(self._rollback(actor))

    async def switch(self, spec: ModelSpec, *, actor: Principal | None) -> AliasRecord:
        """Loads another model and lets ``default`` mean it; a canary that runs ends. Raises as `ModelManager.switch`."""
        return await self._to_the_end(self._switch(spec, actor))

    async def reload(self, *, actor: Principal | None) -> AliasRecord:
        """A fresh engine of what ``default`` means. Raises as `ModelManager.reload`."""
        return await self._models.reload(actor=actor)

    def canary(self) -> CanaryRecord | None:
        """The canary that runs, with its counts as last judged."""
        return self._trials.canary

    async def last_canary(self) -> CanaryRecord | None:
        """The canary that runs, or the one that ran last. Raises StorageUnavailable."""
        return await self._trials.last_canary()

    async def stop_canary(self, *, actor: Principal | None) -> CanaryRecord:
        """Ends the canary: all sessions get what ``default`` means. Raises Conflict where none runs."""
        return await self._to_the_end(self._stop(actor))

    async def tick(self) -> None:
        """What happens by itself every few seconds: what may not serve any more goes, and live feedback is judged.

        A change that is under way comes first: then it does nothing."""
        if self._lock.locked():
            return
        async with self._lock:
            await self._trials.flush()
            await self._withdraw()
            trial = self._trials.running
            if trial is not None and await self._trials.still_on(trial):
                await self._judge(trial)

    async def _promote(
        self, version: str, actor: Principal | None, share: float | None, override: str | None
    ) -> AliasRecord | CanaryRecord:
        async with self._changing():
            spec = await self._models.spec_of(version)
            note: dict[str, Any] = {}
            if override is not None and actor is not None:
                failed = await self._rules.override(spec, version, by=actor.user_id, reason=override)
                note = {"override": override, "failed": list(failed)}
                await self._chronicle.audit(
                    "model.override", f"version:{version}", actor, {"reason": override, "failed": list(failed)}
                )
                self._chronicle.count("overridden")
            try:
                await self._rules.check(spec, version)
            except NotPromotable:
                self._chronicle.count("refused")
                raise
            if share is not None:
                if self._trials.canary is not None:
                    raise Conflict("A canary runs already. Stop it first: POST /model/canary/stop.")
                if spec == self._models.current()[0]:
                    raise Conflict("This is what `default` means already.", field="version")
                return await self._trials.begin(spec, version, share, actor)
            return await self._promote_fully(version, actor, note)

    async def _promote_fully(self, version: str, actor: Principal | None, note: dict[str, Any]) -> AliasRecord:
        _, before = self._models.current()
        trial = self._trials.running
        record = await self._models.promote(version, actor=actor, note=note)
        judged = trial is not None and not trial.watched and trial.trial.version == version
        if before != version and trial is not None:
            await self._trials.end(
                trial, "promoted" if judged else "stopped", "promoted" if judged else "default was moved", actor
            )
        if before != version:
            self._chronicle.count("promoted")
            if before is not None:
                await self._trials.watch(before, record)
        return record

    async def _rollback(self, actor: Principal | None) -> AliasRecord:
        async with self._changing():
            spec, left = self._models.current()
            canary, trial = self._trials.canary, self._trials.running
            if trial is not None and canary is not None:
                await self._trials.end(trial, "rolled_back", "rollback", actor)
            record = self._models.record()
            if canary is not None and record is not None and not record.previous:
                self._chronicle.count("rolled_back")
                return record
            record = await self._models.rollback(actor=actor)
            if trial is not None and canary is None:
                await self._trials.end(trial, "rolled_back", "rollback", actor)
            await self._chronicle.tell_run(spec.adapter, left, "rolled_back", "rolled back by an admin", actor)
            self._chronicle.count("rolled_back")
            return record

    async def _switch(self, spec: ModelSpec, actor: Principal | None) -> AliasRecord:
        async with self._changing():
            trial = self._trials.running
            record = await self._models.switch(spec, actor=actor)
            if trial is not None and record.version != trial.trial.control_version:
                await self._trials.end(trial, "stopped", "default was moved", actor)
            return record

    async def _stop(self, actor: Principal | None) -> CanaryRecord:
        async with self._changing():
            if self._trials.running is None or self._trials.canary is None:
                raise Conflict("No canary runs.")
            return await self._trials.end(self._trials.running, "stopped", "stopped by an admin", actor)

    async def _withdraw(self) -> None:
        """Takes away from ``default`` what may not serve any more: its adapter was retired, say."""
        spec, version = self._models.current()
        if spec.adapter is None or version is None:
            return
        try:
            await self._rules.check(spec, version)
        except NotPromotable as error:
            await self._take_back(spec, version, error.detail)

    async def _take_back(self, spec: ModelSpec, version: str, why: str) -> None:
        logger.error("default is rolled back", extra={"data": {"version": version, "why": why}})
        trial = self._trials.running
        await self._models.rollback(actor=None, note={"why": why}, anywhere=True)
        if trial is not None:
            await self._trials.end(trial, "rolled_back", why, None)
        await self._chronicle.tell_run(spec.adapter, version, "rolled_back", why, None)
        self._chronicle.count("rolled_back_by_itself")

    async def _judge(self, trial: LiveJudge) -> None:
        """Reads what people said, and acts on what that shows."""
        if not await trial.read():
            return
        evidence, record = await trial.evidence(), trial.trial
        counts = counts_of(evidence)
        await self._trials.note_counts(trial, counts)
        if evidence.harmful:
            why = "people liked it less: shown by their votes"
            # First of all: from here on no way leads back to it without an override.
            await self._chronicle.tell_run(record.run_id, record.version, "harm", why, None, counts=counts)
            if trial.watched:
                await self._take_back(self._models.current()[0], record.version, why)
                return
            logger.error("the canary is rolled back", extra={"data": {"version": record.version, "why": why, **counts}})
            await self._trials.end(trial, "rolled_back", why, None)
            self._chronicle.count("rolled_back_by_itself")
        elif evidence.harmless and trial.watched:
            await self._trials.end(trial, "promoted", "people do not like it less: shown by their votes", None)
        elif evidence.harmless:
            await self._models.promote(record.version, actor=None, note={"why": "canary", "counts": counts})
            await self._trials.end(trial, "promoted", "people do not like it less: shown by their votes", None)
            self._chronicle.count("promoted")

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_LOCK_S):
                await self._lock.acquire()
        except TimeoutError:
            raise Conflict("Another change is under way. Try again when that has ended.", retry_after=2) from None
        try:
            yield
        finally:
            self._lock.release()

    async def _to_the_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Runs a change so that a caller who leaves does not stop it half-way."""
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self.tick()
            except AprendizError as error:
                logger.warning("live feedback was not judged", extra={"data": {"error": error.slug, "detail": error.detail}})
            except Exception:
                logger.exception("The judging of live feedback failed; it goes on.")


def _check_override(reason: str, actor: Principal | None) -> None:
    if actor is None or not actor.is_admin:
        raise Forbidden("Only an administrator may override the gate.")
    if not reason.strip() or len(reason) > MOST_REASON:
        raise InvalidRequest(f"An override needs a reason of 1 to {MOST_REASON} characters.", field="override.reason")
