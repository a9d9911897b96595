"""One run from its snapshot to its end: the phases in order, each written to its row, each begun again where a restart left it.

Which phase comes next is read from facts (is there a snapshot, an adapter, a verdict), never from the phase that the row names.
It does not choose which run is next (that is `app.training.jobs`), and it looks after no process (`app.training.supervisor`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from app.core.errors import (
    AprendizError,
    Conflict,
    NotFound,
    ShuttingDown,
    StorageUnavailable,
    TooLittleFeedback,
    Unavailable,
    UpstreamError,
)
from app.core.records import RunPhase, RunRecord, SnapshotRecord
from app.core.types import ModelSpec
from app.training.config import TrainConfig
from app.training.feed import EVENTS, note
from app.training.folders import CANCEL, make_private, read_json, write_json
from app.training.progress import Progress
from app.training.reports import choose_method, missing
from app.training.snapshots import SnapshotConfig, verify
from app.training.supervisor import Supervisor
from app.training.tools import Tools

JOB: Final = "job.json"
_LOOK_S: Final = 0.2
_WRITE_S: Final = 5.0
_TRIES: Final = 3
_LONGEST_WAIT_S: Final = 30.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RunCancelled(Exception):
    """Somebody asked the run to end."""


class RunGone(Exception):
    """Its row is not `running` any more: another process ended it, or it was deleted."""


class Course:
    """The way of one run, whose row is ``running`` and whose folder is there."""

    def __init__(self, run: RunRecord, tools: Tools) -> None:
        self._run = run
        self._tools = tools
        self._progress = Progress(run.progress, run.phase)
        self._supervisor: Supervisor | None = None
        self._cancelled = False
        self._folder = tools.folders.run(run.id)

    @property
    def run_id(self) -> str:
        return self._run.id

    @property
    def phase(self) -> RunPhase:
        """Where it is now; its row may be a moment behind."""
        return self._progress.phase

    def progress(self) -> dict[str, Any]:
        """How far it is now; its row may be some seconds behind."""
        self._progress.paused = self._supervisor is not None and self._supervisor.paused
        return self._progress.to_json()

    def cancel(self) -> None:
        """Asks the run to end; `go` then writes that it did."""
        self._cancelled = True
        if self._supervisor is not None:
            self._supervisor.cancel()

    async def go(self) -> bool:
        """To the run's end, which is written to its row; False: the service ends first, and the row says ``running`` still.

        Cancelled (the service ends), it leaves the child alone, and the next `Course` of this run goes on.
        """
        try:
            await self._phases()
        except RunGone:
            logger.warning("a run was ended elsewhere", extra={"data": {"run": self._run.id}})
        except RunCancelled:
            await self._end("cancelled")
        except ShuttingDown:
            return False
        except AprendizError as error:
            await self._end("failed", error.detail)
        except OSError as error:
            logger.warning("a run failed on its files", exc_info=error, extra={"data": {"run": self._run.id}})
            await self._end("failed", _words_of(error))
        except Exception:
            logger.exception("A run failed for a defect of ours.", extra={"data": {"run": self._run.id}})
            await self._end("failed", "Something went wrong on our side. The service's log names it under the run's id.")
        else:
            await self._end("succeeded")
        return True

    async def _phases(self) -> None:
        await self._until_installed()
        if "sha256" not in self._run.base:
            await self._freeze()
        snapshot = await self._snapshot()
        if self._run.gate is None:
            await self._train(snapshot)
            await self._judge(snapshot)
        gate = self._run.gate or {}
        if self._run.promote == "if_passed" and gate.get("verdict") == "pass":
            await self._promote()

    async def _until_installed(self) -> None:
        self._progress.detail = "The packages that training needs are being installed."
        while not (found := self._tools.packages()).ready:
            found.check()
            await self._save(progress=self._progress.to_json())
            await self._or_cancelled(asyncio.sleep(self._tools.timings.again_s))
        self._progress.detail = None

    async def _freeze(self) -> None:
        """The snapshot, and what is trained: the base of what ``default`` means now."""
        await self._enter("snapshot")
        tools, run = self._tools, self._run
        spec, version = tools.models.current()
        files = await self._or_cancelled(asyncio.to_thread(tools.bases.files, spec))
        if run.snapshot_id is None:
            rules = SnapshotConfig.model_validate(run.base["order"]["rules"])
            snapshot = await self._or_cancelled(tools.builder.build(rules, actor=None))
        else:
            snapshot = await self._snapshot()
        method = method_for(run.method, snapshot.report)
        config = TrainConfig.model_validate(run.config).resolved(method)
        base = {"provider": spec.provider, "model": spec.model, "device": spec.device, "version": version}
        await self._save(
            snapshot_id=snapshot.id,
            method=method,
            config=config.model_dump(mode="json"),
            base={**run.base, **base, "name": spec.public_name, "sha256": files.sha256},
        )

    async def _snapshot(self) -> SnapshotRecord:
        """The run's snapshot, its files checked. Raises NotFound, and Conflict where it was erased or is damaged."""
        snapshot_id = self._run.snapshot_id
        found = None if snapshot_id is None else await self._tools.snapshots.get(snapshot_id)
        if found is None:
            raise NotFound("The snapshot of this run is gone. Start another run.")
        await asyncio.to_thread(verify, found, self._tools.folders.snapshot(found.id))
        return found

    async def _train(self, snapshot: SnapshotRecord) -> None:
        if self._run.adapter_hash is not None:
            return
        if self._cancel_asked():
            raise RunCancelled
        await self._enter("prepare")
        rehearsed = await self._patiently(self._rehearsed)
        await asyncio.to_thread(self._write_job, snapshot, rehearsed)
        tools = self._tools
        supervisor = Supervisor(
            self._folder,
            command=tools.command,
            busy=tools.models.busy,
            hear=self._hear,
            throttle=tools.throttle(),
            timings=tools.timings,
        )
        self._supervisor = supervisor
        writer = asyncio.create_task(self._keep_writing(supervisor))
        try:
            outcome = await supervisor.run()
        finally:
            self._supervisor = None
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            tools.metrics.run_restarts.inc(supervisor.restarts)
            tools.metrics.run_paused_seconds.inc(supervisor.paused_s)
        if outcome.kind == "cancelled":
            raise RunCancelled
        if outcome.result is None:
            raise Conflict(outcome.detail)
        await self._save(adapter_hash=outcome.result["adapter_hash"])

    def _base(self) -> ModelSpec:
        base = self._run.base
        return ModelSpec(base["provider"], base["model"], base["device"])

    async def _rehearsed(self) -> Path | None:
        """The rows that keep the model from forgetting what it could, where the run wants them and has no job yet."""
        rehearsal = self._tools.rehearsal
        if rehearsal is None or not self._run.config.get("rehearsal") or (self._folder / JOB).exists():
            return None
        return await rehearsal.rows(self._base())

    def _write_job(self, snapshot: SnapshotRecord, rehearsed: Path | None) -> None:
        if read_json(self._folder / JOB) is not None:
            return
        tools, base = self._tools, self._run.base
        files = tools.bases.files(self._base())
        if files.sha256 != base["sha256"]:
            raise Conflict("The files of the base model have changed since the run began. Start another run.")
        for folder in (tools.folders.adapters, tools.folders.bases):
            make_private(folder)
        job = {
            "run_id": self._run.id,
            "base": files.to_job(tools.folders.bases),
            "snapshot": str(tools.folders.snapshot(snapshot.id).resolve()),
            "config": dict(self._run.config),
            "adapters": str(tools.folders.adapters.resolve()),
            "threads": tools.threads,
            "chat_template": None,
            "device": base["device"],
        }
        if rehearsed is not None:
            job["rehearsal"] = str(rehearsed.resolve())
        write_json(self._folder / JOB, job)

    def _hear(self, event: Mapping[str, Any]) -> None:
        self._progress.hear(event)

    async def _keep_writing(self, supervisor: Supervisor) -> None:
        """Writes the progress to the row now and then, for other processes and after a restart."""
        written, at = self.progress(), time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = self.progress()
            if now == written or (now["phase"] == written["phase"] and time.monotonic() < at + _WRITE_S):
                continue
            try:
                await self._write(progress=now, phase=now["phase"])
            except (RunGone, Conflict):
                supervisor.cancel()
            except AprendizError as error:
                logger.warning("the progress of a run was not written", extra={"data": {"error": error.slug}})
            written, at = now, time.monotonic()

    async def _judge(self, snapshot: SnapshotRecord) -> None:
        await self._enter("gate")
        judge = self._tools.judge
        report = await self._patiently(lambda: judge.judge(self._run, snapshot, self._folder, progress=self._progress.judged))
        await self._save(gate=dict(report), version=report["versions"]["candidate"])

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work``, tried again where what serves cannot now: engines die, and users take all the slots."""
        for left in reversed(range(_TRIES)):
            try:
                return await self._or_cancelled(work())
            except ShuttingDown:
                raise
            except (Unavailable, UpstreamError) as error:
                if not left:
                    raise
                logger.warning("a run waits for what serves", extra={"data": {"run": self._run.id, "error": error.slug}})
                await self._or_cancelled(asyncio.sleep(self._tools.timings.patience_s))
        raise RuntimeError("unreachable")

    async def _promote(self) -> None:
        """Not to be cancelled: it is one step of the alias."""
        await self._enter("promote")
        version = self._run.version
        if version is None or self._tools.models.current()[1] == version:
            return
        try:
            await self._tools.promoter.promote(version, actor=None)
        except ShuttingDown:
            raise
        except AprendizError as error:
            raise Conflict(f"The version passed its gate, but it was not promoted: {error.detail}") from error

    async def _enter(self, phase: RunPhase) -> None:
        self._progress.enter(phase)
        if phase not in ("prepare", "train", "export"):  # of those its child tells
            note(self._folder / EVENTS, "phase", phase=phase)
        await self._save(phase=phase, progress=self._progress.to_json())

    async def _or_cancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; raises RunCancelled, with ``work`` ended, once somebody asks for it."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                if self._cancel_asked():
                    raise RunCancelled
                await asyncio.wait({task}, timeout=_LOOK_S)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _cancel_asked(self) -> bool:
        self._cancelled = self._cancelled or (self._folder / CANCEL).exists()
        return self._cancelled

    async def _save(self, **changes: Any) -> None:
        """Writes to the row, however long the database takes to be there again.

        Raises:
            RunGone: it is not ours any more. Conflict: what it learned from was erased meanwhile.
        """
        wait_s = 1.0
        while True:
            try:
                await self._write(**changes)
            except StorageUnavailable as error:
                logger.warning("a run waits for the database", extra={"data": {"error": error.slug}})
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            else:
                return

    async def _write(self, **changes: Any) -> None:
        found = await self._tools.runs.update(self._run.id, only_in=("running",), **changes)
        if found is None:
            raise RunGone
        self._run = found
        if found.retired_at is not None and "state" not in changes:
            raise Conflict("Feedback that this run learned from was erased. Start another run.")

    async def _end(self, state: Literal["succeeded", "failed", "cancelled"], error: str | None = None) -> None:
        if state == "succeeded":
            self._progress.enter("done")
        progress = self._progress.to_json()
        try:
            await self._save(state=state, phase=self.phase, progress=progress, error=error, ended_at=datetime.now(UTC))
        except RunGone:
            logger.warning("a run was ended elsewhere", extra={"data": {"run": self._run.id}})
            return
        self._tools.metrics.runs_ended.labels(state).inc()
        data = {"run": self._run.id, "state": state, "error": error}
        logger.info("a run has ended", extra={"data": data})


def method_for(method: str, report: Mapping[str, Any]) -> Literal["sft", "dpo", "kto"]:
    """What is trained: ``method``, or what ``auto`` takes. Raises TooLittleFeedback, with what is missing."""
    match method:
        case "sft" | "dpo" | "kto":
            if words := missing(report, method):
                raise TooLittleFeedback(words)
            return method
        case _:
            return choose_method(report)


def _words_of(error: OSError) -> str:
    if error.errno in _FULL:
        return "The disk is full. Free some space and start the run again."
    return f"The run's files cannot be read or written ({error.strerror or 'the system refused'})."
