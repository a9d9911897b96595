"""Training runs as jobs: a queue in the database, one run at a time for a data directory, children that outlive the service.

Several service processes may share a data directory: each takes orders and shows runs, and the one that holds the lock works
them off. What a run does is `app.training.phases`; here stands who may order one, which is next, and what is told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from app.core.errors import AprendizError, Conflict, IdempotencyMismatch, NotFound, TooManyRequests
from app.core.ids import is_uuid7, uuid7
from app.core.logging import request_id_var
from app.core.records import AuditRecord, PromotePolicy, RunRecord, RunState
from app.core.types import Principal
from app.training.config import Method, TrainConfig
from app.training.feed import EVENTS, EventFile
from app.training.folders import CANCEL, make_private
from app.training.lock import RunLock
from app.training.phases import Course, method_for
from app.training.snapshots import SnapshotConfig
from app.training.tools import RunStore, Tools

MOST_QUEUED: Final = 16
OPEN: Final[tuple[RunState, ...]] = ("queued", "running")
_LOCK: Final = "jobs.lock"
_DAY: Final = timedelta(days=1)
_LOOK_S: Final = 2.0
_HEAR_S: Final = 0.25
_ROW_S: Final = 1.0
_REMEMBERED: Final = 500
"""So many of the newest runs are looked through for an idempotency key."""

logger = logging.getLogger(__name__)


class Store(RunStore, Protocol):
    """What is used of `app.db.runs.Runs`."""

    async def add(self, run: RunRecord) -> None: ...
    async def get(self, run_id: str) -> RunRecord | None: ...
    async def list(
        self, *, states: Sequence[RunState] = ..., limit: int = 100, after: str | None = None
    ) -> list[RunRecord]: ...
    async def started_since(self, since: datetime) -> int: ...


class AuditLog(Protocol):
    """What is used of `app.db.audit.Audit`."""

    async def add(self, record: AuditRecord) -> None: ...


class Jobs:
    """The training runs of this service.

    Args:
        tools: what runs work with.
        runs: the table ``runs``.
        audit: who ordered and who cancelled.
        runs_per_day: how many may be ordered within 24 hours.
    """

    def __init__(self, tools: Tools, *, runs: Store, audit: AuditLog, runs_per_day: int) -> None:
        self._tools = tools
        self._runs = runs
        self._audit = audit
        self._runs_per_day = runs_per_day
        self._lock = RunLock(tools.folders.runs / _LOCK)
        self._holds = False
        self._ordering = asyncio.Lock()
        self._wake = asyncio.Event()
        self._course: Course | None = None
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to work the queue off, where this process gets the lock; runs that were interrupted first. Raises OSError."""
        make_private(self._tools.folders.runs)
        self._worker = asyncio.create_task(self._work(), name="training runs")

    async def aclose(self) -> None:
        """Stops; a child that trains lives on, and the next start adopts it. May be called twice."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        self._lock.release()
        self._holds = False

    async def submit(
        self,
        *,
        method: Method = "auto",
        promote: PromotePolicy = "never",
        config: TrainConfig | None = None,
        snapshot_id: str | None = None,
        rules: SnapshotConfig | None = None,
        actor: Principal | None,
    ) -> RunRecord:
        """Orders a run. ``rules``: how its snapshot is made, where ``snapshot_id`` names none.

        Raises:
            TrainingUnavailable: packages are missing. Conflict: what serves cannot be trained, or the snapshot was erased.
            NotFound: no such snapshot. TooLittleFeedback: says what is missing.
            TooManyRequests: too many runs today, or in the queue.
        """
        run, _ = await self.submit_once(
            None, method=method, promote=promote, config=config, snapshot_id=snapshot_id, rules=rules, actor=actor
        )
        return run

    async def submit_once(
        self,
        key: str | None,
        *,
        method: Method,
        promote: PromotePolicy,
        config: TrainConfig | None,
        snapshot_id: str | None,
        rules: SnapshotConfig | None,
        actor: Principal | None,
    ) -> tuple[RunRecord, bool]:
        """As `submit`, once for each ``key`` of one actor; the second value says that this is the run of an earlier call.

        Raises IdempotencyMismatch where the key came with another order.
        """
        settings = (config or TrainConfig()).model_copy(update={"method": method})
        plan = (rules or SnapshotConfig()).model_copy(update={"method": method})
        order = {"promote": promote, "snapshot": snapshot_id, "rules": plan.model_dump(mode="json")}
        order["digest"] = _digest({**order, "config": settings.model_dump(mode="json")})
        async with self._ordering:
            if key is not None:
                order["key"] = _digest([key, None if actor is None else actor.user_id])
                if (earlier := await self._ordered(order)) is not None:
                    return earlier, True
            await self._admit()
            await self._check(method, snapshot_id, plan)
            run = RunRecord(
                id=uuid7(),
                created_at=datetime.now(UTC),
                created_by=None if actor is None else actor.user_id,
                state="queued",
                phase="waiting",
                method=method,
                promote=promote,
                config=settings.model_dump(mode="json"),
                base={"order": order},
                progress={"phase": "waiting", "percent": 0.0, "paused": False},
                snapshot_id=snapshot_id,
            )
            await self._runs.add(run)
        await self._note("training.submit", run.id, actor, {"method": method, "promote": promote, "snapshot": snapshot_id})
        self._wake.set()
        return run, False

    async def cancel(self, run_id: str, *, actor: Principal | None) -> RunRecord:
        """Ends a run; one that trains takes some seconds to do so.

        Raises:
            NotFound: there is no such run. Conflict: it has ended, or it is being promoted.
        """
        run = await self.get(run_id)
        ended = None
        if run.state == "queued":
            ended = await self._runs.update(run.id, only_in=("queued",), state="cancelled", ended_at=datetime.now(UTC))
            run = ended or await self.get(run_id)
        if ended is None:
            if run.state != "running":
                raise Conflict("The run has ended already.")
            run = await self._cancel_running(run)
        await self._note("training.cancel", run.id, actor, {"state": run.state})
        return run

    async def get(self, run_id: str) -> RunRecord:
        """One run. Raises NotFound for what is no id, too."""
        found = await self._runs.get(run_id) if is_uuid7(run_id) else None
        if found is None:
            raise NotFound("There is no such training run.")
        return found

    def progress(self, run: RunRecord) -> Mapping[str, Any]:
        """How far a run is: as heard a moment ago where it is worked on here, else as its row says."""
        if run.state == "running" and self._course is not None and self._course.run_id == run.id:
            return self._course.progress()
        return run.progress

    def folder(self, run_id: str) -> Path:
        """Where the files of a run lie. Raises ValueError for what is no id."""
        return self._tools.folders.run(run_id)

    async def events(self, run_id: str, after: int = 0) -> AsyncGenerator[dict[str, Any], None]:
        """All events of a run from its beginning, then as they come; ends with the run.

        Each has ``event``, and ``id`` where it can be gone on from (``after``). ``paused`` and ``continued`` have none: they
        are told as they happen. Raises NotFound.
        """
        run = await self.get(run_id)
        file = EventFile(self._tools.folders.run(run.id) / EVENTS, after=after)
        paused, asked = False, asyncio.get_running_loop().time()
        while True:
            for heard in (found := await asyncio.to_thread(file.read)):
                yield {**heard.event, "id": heard.end}
            if found:
                continue
            if run.state not in OPEN:
                return
            if self.progress(run).get("paused", False) is not paused:
                paused = not paused
                yield {"event": "paused" if paused else "continued"}
            await asyncio.sleep(_HEAR_S)
            if (now := asyncio.get_running_loop().time()) >= asked + _ROW_S:
                run, asked = await self.get(run_id), now

    async def _cancel_running(self, run: RunRecord) -> RunRecord:
        mine = self._course if self._course is not None and self._course.run_id == run.id else None
        if (mine.phase if mine is not None else run.phase) == "promote":
            raise Conflict("The run is being promoted. Roll back in a moment, if its version should not serve.")
        folder = self._tools.folders.run(run.id)
        if mine is not None:
            mine.cancel()
        elif not folder.is_dir():  # of another data directory, or of one that was lost
            ended = await self._runs.update(run.id, only_in=("running",), state="cancelled", ended_at=datetime.now(UTC))
            return ended or await self.get(run.id)
        try:
            (folder / CANCEL).touch(mode=0o600)  # whichever process works on it, now or after a restart, sees it
        except OSError as error:
            logger.warning("the wish to end a run was not written", extra={"data": {"run": run.id, "error": error.strerror}})
            if mine is None:
                raise Conflict("The run's folder cannot be written, so the run was not told to end. Try again.") from error
        return run

    async def _admit(self) -> None:
        """Raises TooManyRequests."""
        now = datetime.now(UTC)
        if await self._runs.started_since(now - _DAY) >= self._runs_per_day:
            oldest = (await self._runs.list(limit=max(self._runs_per_day, 1)))[-1:] if self._runs_per_day else []
            wait_s = (oldest[0].created_at + _DAY - now).total_seconds() if oldest else _DAY.total_seconds()
            raise TooManyRequests(
                f"Only {self._runs_per_day} training runs may be started in 24 hours (training.runs_per_day).",
                retry_after=min(max(wait_s, 1), _DAY.total_seconds()),
            )
        if len(await self._runs.list(states=("queued",), limit=MOST_QUEUED)) >= MOST_QUEUED:
            raise TooManyRequests(f"{MOST_QUEUED} training runs wait already. Cancel some, or wait.", retry_after=60)

    async def _check(self, method: Method, snapshot_id: str | None, rules: SnapshotConfig) -> None:
        """Raises what can be told at once: see `submit`."""
        tools = self._tools
        tools.packages().check()
        tools.bases.check(tools.models.current()[0])
        if snapshot_id is None:
            method_for(method, await tools.builder.preview(rules))
            return
        snapshot = await tools.snapshots.get(snapshot_id) if is_uuid7(snapshot_id) else None
        if snapshot is None:
            raise NotFound("There is no such snapshot.", field="snapshot")
        if snapshot.erased_at is not None:
            raise Conflict("The files of this snapshot were erased with a person's data. Make a new snapshot.")
        method_for(method, snapshot.report)

    async def _ordered(self, order: Mapping[str, Any]) -> RunRecord | None:
        for run in await self._runs.list(limit=_REMEMBERED):
            earlier = run.base.get("order", {})
            if earlier.get("key") != order["key"]:
                continue
            if earlier.get("digest") != order["digest"]:
                raise IdempotencyMismatch("This Idempotency-Key came before with another order. Use a new key for a new run.")
            return run
        return None

    async def _note(self, action: str, run_id: str, actor: Principal | None, details: Mapping[str, Any]) -> None:
        who = None if actor is None else actor.user_id
        record = AuditRecord(uuid7(), datetime.now(UTC), who, action, run_id, details, request_id_var.get())
        await self._audit.add(record)

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            worked = False
            try:
                worked = await self._turn()
            except (AprendizError, OSError) as error:
                logger.warning("the queue of training runs cannot be worked off now: %s", type(error).__name__)
            except Exception:
                logger.exception("The queue of training runs failed; it goes on.")
            if not worked:
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _turn(self) -> bool:
        """Works one run off, if there is one and we are the one to do so; whether it did."""
        self._holds = self._holds or self._lock.acquire()
        waiting = await self._runs.list(states=OPEN, limit=2 * MOST_QUEUED)
        for state in OPEN:
            self._tools.metrics.runs.labels(state).set(sum(run.state == state for run in waiting))
        run = await self._next(waiting) if self._holds else None
        if run is None:
            return False
        self._course = Course(run, self._tools)
        try:
            return await self._course.go()
        finally:
            self._course = None

    async def _next(self, waiting: Sequence[RunRecord]) -> RunRecord | None:
        """What was interrupted, else the oldest order; the latter is ours from now on."""
        oldest_first = sorted(waiting, key=lambda run: run.id)
        for run in oldest_first:
            # One without a folder here belongs to another data directory that shares the database.
            if run.state == "running" and self._tools.folders.run(run.id).is_dir():
                return run
        for run in oldest_first:
            if run.state == "queued":
                make_private(self._tools.folders.run(run.id))
                claimed = await self._runs.update(run.id, only_in=("queued",), state="running", started_at=datetime.now(UTC))
                if claimed is not None:
                    return claimed
                with contextlib.suppress(OSError):  # a folder would say that this run is of this data directory
                    self._tools.folders.run(run.id).rmdir()
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
