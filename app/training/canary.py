"""The trials of versions with people: the canary that runs or the promotion that is watched, from its start to its stored end.

One at a time. It sends sessions to a canary (`ModelManager.set_canary`) and keeps the row that a restart goes on from. What
votes say is `app.training.live`'s; what follows from it, and moving the alias, is `app.training.promotion`'s.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from app.core.errors import AprendizError, NotPromotable
from app.core.ids import uuid7
from app.core.records import AliasRecord, CanaryRecord, CanaryState
from app.core.types import ModelSpec, Principal
from app.models.aliases import DEFAULT
from app.models.model_manager import ModelManager
from app.models.routing import Canary
from app.training.chronicle import Chronicle
from app.training.live import WINDOW, LiveJudge, VoteStore
from app.training.rules import Rules

logger = logging.getLogger(__name__)


class CanaryStore(Protocol):
    """`app.db.runs.Canaries`."""

    async def add(self, canary: CanaryRecord) -> None:
        """Stores a new one."""

    async def list(self, *, limit: int = 100) -> list[CanaryRecord]:
        """Newest first."""

    async def update(self, canary_id: str, **changes: Any) -> None:
        """Changes fields by name."""


@dataclass(frozen=True, slots=True)
class LiveStores:
    """Where trials and the votes on them are."""

    canaries: CanaryStore
    votes: VoteStore


class LiveTrials:
    """The trial that runs, if one does.

    Args:
        models: who serves.
        rules: who may.
        stores: trials and votes.
        chronicle: where starts and ends are written down.
    """

    def __init__(self, models: ModelManager, rules: Rules, stores: LiveStores, chronicle: Chronicle) -> None:
        self._models = models
        self._rules = rules
        self._stores = stores
        self._chronicle = chronicle
        self._unsaved: dict[str, dict[str, Any]] = {}
        """Ends that could not be stored yet: by the id of the row."""
        self.running: LiveJudge | None = None

    @property
    def canary(self) -> CanaryRecord | None:
        """The canary that runs, with its counts as last judged."""
        return None if self.running is None or self.running.watched else self.running.trial

    async def start(self) -> None:
        """Goes on with what ran when the service ended. Raises StorageUnavailable."""
        for record in await self._stores.canaries.list(limit=20):
            if record.state == "running":
                await self._resume(record)

    async def last_canary(self) -> CanaryRecord | None:
        """The canary that runs, or the one that ran last. Raises StorageUnavailable."""
        found = (each for each in await self._stores.canaries.list(limit=50) if each.share < 1)
        return self.canary or next(found, None)

    async def flush(self) -> None:
        """Stores the ends that could not be stored. Raises StorageUnavailable."""
        for canary_id, changes in list(self._unsaved.items()):
            await self._stores.canaries.update(canary_id, **changes)
            del self._unsaved[canary_id]

    async def note_counts(self, trial: LiveJudge, counts: dict[str, Any]) -> None:
        """Keeps what was last judged. Raises StorageUnavailable."""
        trial.trial = replace(trial.trial, counts=counts)
        await self._stores.canaries.update(trial.trial.id, counts=counts)

    async def begin(self, spec: ModelSpec, version: str, share: float, actor: Principal | None) -> CanaryRecord:
        """Loads a canary and sends it its share of the sessions. Raises as `ModelManager.start_canary`; StorageUnavailable."""
        canary_id = uuid7()
        control = await self._models.start_canary(Canary(DEFAULT, spec, version, share, salt=canary_id))
        record = CanaryRecord(
            id=canary_id,
            alias=DEFAULT,
            version=version,
            control_version=control,
            share=share,
            state="running",
            started_at=datetime.now(UTC),
            started_by=None if actor is None else actor.user_id,
            run_id=spec.adapter,
        )
        try:
            await self._stores.canaries.add(record)
        except BaseException:
            self._models.set_canary(None)
            raise
        if self.running is not None:
            await self.end(self.running, "stopped", "a canary began", actor)
        self.running = LiveJudge(self._stores.votes, record)
        await self._chronicle.audit("canary.start", f"version:{version}", actor, {"share": share, "control": control})
        self._chronicle.count("canary")
        self._chronicle.show_share(share)
        return record

    async def watch(self, before: str, record: AliasRecord) -> None:
        """From now on what people say of a promoted version is compared with what they said of the one before."""
        watched = CanaryRecord(
            id=uuid7(),
            alias=record.name,
            version=record.version,
            control_version=before,
            share=1.0,
            state="running",
            started_at=datetime.now(UTC),
            started_by=record.moved_by,
            run_id=record.adapter,
        )
        try:
            await self._stores.canaries.add(watched)
        except AprendizError:
            # The promotion stands; it is watched until the next restart at least.
            logger.exception("the watch over a promotion is not stored", extra={"data": {"version": record.version}})
        self.running = LiveJudge(self._stores.votes, watched)

    async def end(self, trial: LiveJudge, state: CanaryState, reason: str, actor: Principal | None) -> CanaryRecord:
        """Ends a trial: for sessions at once, then in the store, for good."""
        record = replace(trial.trial, state=state, reason=reason, ended_at=datetime.now(UTC))
        if not trial.watched:
            status = self._models.status().canary
            if status is not None and (status.failures or status.answered):
                engine = {"answered": status.answered, "failures": status.failures}
                record = replace(record, counts={**record.counts, "engine": engine})
            self._models.set_canary(None)
            self._chronicle.show_share(0)
        if self.running is trial:
            self.running = None
        changes = {"state": state, "reason": reason, "ended_at": record.ended_at, "counts": dict(record.counts)}
        try:
            await self._stores.canaries.update(record.id, **changes)
        except AprendizError:
            logger.exception("the end of a trial is not stored yet", extra={"data": {"version": record.version}})
            self._unsaved[record.id] = changes
        if not trial.watched:
            words = {"state": state, "reason": reason, "share": record.share, "counts": dict(record.counts)}
            await self._chronicle.audit("canary.end", f"version:{record.version}", actor, words)
            if state == "rolled_back":
                await self._chronicle.tell_run(record.run_id, record.version, state, f"as a canary: {reason}", actor)
        return record

    async def still_on(self, trial: LiveJudge) -> bool:
        """Whether what a trial is about is still so; ends it otherwise."""
        record, (_, current) = trial.trial, self._models.current()
        status = self._models.status().canary
        if not trial.watched and status is None:
            # An erasure took it away, and has noted that.
            self.running = None
            self._chronicle.show_share(0)
        elif current not in (None, record.version if trial.watched else record.control_version):
            await self.end(trial, "stopped", "default means another version since", None)
        elif trial.watched and datetime.now(UTC) - record.started_at > WINDOW:
            await self.end(trial, "promoted", f"watched for {WINDOW.days} days", None)
        elif status is not None and status.broken:
            await self.end(trial, "rolled_back", f"it failed {status.failing} times in a row", None)
            self._chronicle.count("rolled_back_by_itself")
        elif not trial.watched and not await self._allowed(record.version):
            await self.end(trial, "rolled_back", "it may not serve any more", None)
            self._chronicle.count("rolled_back_by_itself")
        else:
            return True
        return False

    async def _allowed(self, version: str) -> bool:
        try:
            await self._rules.check(await self._models.spec_of(version), version)
        except NotPromotable:
            return False
        return True

    async def _resume(self, record: CanaryRecord) -> None:
        """Goes on with a trial of before the restart, unless what it is about is not so any more."""
        _, current = self._models.current(record.alias)
        trial = LiveJudge(self._stores.votes, record)
        if self.running is not None:
            await self.end(trial, "stopped", "another trial began", None)
        elif record.share < 1 and current == record.version:
            # The service was killed after the alias had been moved, and before that was noted here.
            await self.end(trial, "promoted", "promoted", None)
        elif current != (record.version if trial.watched else record.control_version):
            await self.end(trial, "stopped", "default means another version since", None)
        elif trial.watched:
            self.running = trial
        else:
            spec = await self._models.spec_of(record.version)
            try:
                await self._rules.check(spec, record.version)
            except NotPromotable as error:
                await self.end(trial, "rolled_back", error.detail, None)
                return
            self._models.set_canary(Canary(record.alias, spec, record.version, record.share, salt=record.id))
            self._models.preload_canary()
            self._chronicle.show_share(record.share)
            self.running = trial
