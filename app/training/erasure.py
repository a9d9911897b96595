"""Erasing a person: out of the rows, the snapshots, whatever was trained on them, the caches, and the bytes of the files.

Each step may be done again without harm, and what has to be remembered between them stands in
``<data>/erasures/<user id>.json`` until the last one is done: an erasure that was cut off, by an error or by ``kill -9``, goes
on by itself. The account is disabled first and deleted late, so that nothing new of the person comes in meanwhile and
everything old is found. What other people said is not lost: it stands in the database, and the report offers the run that
learns it again. Copies that are not ours (backups elsewhere, logs of a database server) are named in doc/privacy.md.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from app.core.config import make_folder
from app.core.errors import AprendizError, Conflict, EngineUnavailable, NotFound, StorageUnavailable
from app.core.ids import is_uuid7, uuid7
from app.core.logging import request_id_var
from app.core.records import AuditRecord, UserRecord
from app.core.settings import Settings
from app.core.types import Principal
from app.db.audit import Audit
from app.db.database import Database
from app.db.erased import Erased
from app.db.location import locate
from app.db.runs import Runs
from app.db.sessions import Sessions
from app.db.snapshots import Snapshots
from app.db.users import Users
from app.training.erasure_stores import ErasureReport, Live, Stores
from app.training.folders import Folders, read_json, write_json

logger = logging.getLogger(__name__)

REASON: Final = "a person whose data it was trained on was erased"
_OPEN: Final = ("queued", "running")
_END_S: Final = 60.0
_FRESH_S: Final = 60.0
_LOOK_S: Final = 0.2
_POLL_S: Final = 5.0
_LATE_S: Final = 900.0
"""For so long it is looked whether a snapshot that was being made meanwhile holds the person after all."""


@dataclass(frozen=True, slots=True)
class _Order:
    """What is remembered between two steps; ids and numbers, no name and no text."""

    user_id: str
    actor: str | None
    delete_backups: bool
    address: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    snapshots: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    serves: Mapping[str, str] = field(default_factory=dict)
    audited: bool = False


class Erasure:
    """Erases people, one at a time.

    Args:
        folders: the data directory.
        backups: where backups of the database lie; ``database``: its file, None for PostgreSQL.
        stores: the repositories.
        live: the running service; None: the command line, which leaves the last steps to a service.
    """

    def __init__(
        self, folders: Folders, *, backups: Path, database: Path | None, stores: Stores, live: Live | None
    ) -> None:  # fmt: skip
        self._folders = folders
        self._backups = backups
        self._database = database
        self._stores = stores
        self._live = live
        self._lock = asyncio.Lock()
        self._late: dict[str, float] = {}
        self._begun: set[asyncio.Task[ErasureReport]] = set()
        self._worker: asyncio.Task[None] | None = None

    @property
    def _orders(self) -> Path:
        return self._folders.data / "erasures"

    async def start(self) -> None:
        """Goes on with what was cut off, now and whenever the command line leaves something to do."""
        self._worker = asyncio.create_task(self._work(), name="erasures")

    async def aclose(self) -> None:
        """Stops; what is unfinished goes on at the next start. May be called twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker, *self._begun], timeout=_END_S)

    async def erase(
        self, user_id: str, *, actor: Principal | None, delete_backups: bool = False, address: str = ""
    ) -> ErasureReport:
        """Erases a person. A caller who leaves does not stop it, and what fails half-way is tried again by itself.

        Raises:
            NotFound: there is no such account, nor an unfinished erasure of one. Conflict: the last enabled admin.
            AprendizError: not finished; the account is disabled and the rest goes on by itself.
        """
        task = asyncio.create_task(self._begin(user_id, actor, delete_backups, address))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)

    async def _begin(self, user_id: str, actor: Principal | None, delete_backups: bool, address: str) -> ErasureReport:
        async with self._lock:
            order = await asyncio.to_thread(self._read, user_id) if is_uuid7(user_id) else None
            user = await self._stores.users.get(user_id) if is_uuid7(user_id) else None
            if user is None and order is None:
                raise NotFound("There is no such user.")
            if user is not None:
                await self._lock_out(user)
            if order is None:
                order = _Order(user_id, None if actor is None else actor.user_id, delete_backups, address)
            order = await self._save(replace(order, delete_backups=order.delete_backups or delete_backups))
            return await self._go(order, actor)

    async def _lock_out(self, user: UserRecord) -> None:
        now = datetime.now(UTC)
        await self._stores.users.update(user.id, disabled_at=user.disabled_at or now)
        await self._stores.sessions.revoke_user(user.id, now=now)
        if self._live is not None:
            self._live.forget(user.id)

    async def _go(self, order: _Order, actor: Principal | None = None) -> ErasureReport:
        """All steps, from the first. Raises AprendizError; the order then stays."""
        stores = self._stores
        order = await self._found(order)
        order = await self._unlearned(order, actor)
        order = await self._counted(order)
        blanked = await stores.people.blank_answers(order.user_id, order.lent)
        counts = {**order.counts, "answers_of_others": order.counts.get("answers_of_others", 0) + blanked}
        order = await self._save(replace(order, counts=counts))
        await stores.users.delete(order.user_id)
        if set(await stores.people.snapshots_of(order.user_id)) - set(order.snapshots):
            order = await self._unlearned(await self._found(order), actor)
        await stores.people.strip_lineage(order.user_id)
        if self._live is not None:
            self._live.forget(order.user_id)
            await self._live.answers.forget_all_answers()
            await self._live.recollections(order.user_id)
        await stores.disk.compact()
        left, deleted = await asyncio.to_thread(self._tidy_backups, order.delete_backups)
        await self._note(order)
        complete = self._live is not None
        if complete:
            await asyncio.to_thread(self._path(order.user_id).unlink, missing_ok=True)
        self._late[order.user_id] = time.monotonic()
        return ErasureReport(
            user_id=order.user_id,
            complete=complete,
            counts=order.counts,
            snapshots=order.snapshots,
            runs=order.runs,
            versions=order.versions,
            serves=order.serves,
            backups=left,
            backups_deleted=deleted,
            retrain={"method": "auto", "promote": "if_passed"} if order.runs else None,
        )

    async def _found(self, order: _Order) -> _Order:
        """What holds the person, written down before any of it goes."""
        stores = self._stores
        snapshots = sorted({*order.snapshots, *await stores.people.snapshots_of(order.user_id)})
        runs = await stores.runs.of_snapshots(snapshots) if snapshots else []
        return await self._save(
            replace(
                order,
                snapshots=tuple(snapshots),
                runs=tuple(sorted({*order.runs, *(run.id for run in runs)})),
                versions=tuple(sorted({*order.versions, *(run.version for run in runs if run.version is not None)})),
                lent=tuple(sorted({*order.lent, *await stores.people.lent(order.user_id)})),
            )
        )

    async def _counted(self, order: _Order) -> _Order:
        counts = await self._stores.people.counts(order.user_id)
        return replace(order, counts={name: max(count, order.counts.get(name, 0)) for name, count in counts.items()} | {
            name: count for name, count in order.counts.items() if name not in counts
        })  # fmt: skip

    async def _unlearned(self, order: _Order, actor: Principal | None) -> _Order:
        """Ends and retires the runs, takes what serves away from their adapters, deletes the files."""
        now = datetime.now(UTC)
        for run_id in order.runs:
            await self._end(run_id, actor)
            run = await self._stores.runs.get(run_id)
            if run is not None and run.retired_at is None:
                await self._stores.runs.update(run_id, retired_at=now, retired_reason=REASON)
        if order.runs and self._live is not None:
            moved = await self._live.serving.leave(order.runs, actor=actor)
            order = await self._save(replace(order, serves={**order.serves, **moved}))
        await asyncio.to_thread(self._delete_files, order)
        for path in await asyncio.to_thread(self._unknown_snapshots):
            # A process that was killed between the files of a snapshot and its row: nobody knows whose words are in there.
            if await self._stores.snapshots.get(path.name) is None:
                await asyncio.to_thread(_remove, path)
        for snapshot_id in order.snapshots:
            snapshot = await self._stores.snapshots.get(snapshot_id)
            if snapshot is not None and snapshot.erased_at is None:
                await self._stores.snapshots.set_report(snapshot_id, report={"erased": True}, erased_at=now)
        return order

    async def _end(self, run_id: str, actor: Principal | None) -> None:
        """Returns when a run has ended. Raises EngineUnavailable where it does not in time."""
        deadline, told = time.monotonic() + _END_S, False
        while (run := await self._stores.runs.get(run_id)) is not None and run.state in _OPEN:
            if self._live is None:
                raise Conflict("A training run uses this person's data. Cancel it, or erase through the running service.")
            if not told:
                try:
                    await self._live.jobs.cancel(run_id, actor=actor)
                    told = True
                except Conflict:  # it is being promoted, which ends by itself, or has ended just now
                    logger.info("a run with an erased person's data cannot be cancelled now", extra={"data": {"run": run_id}})
            if time.monotonic() > deadline:
                raise EngineUnavailable("A training run does not end. The erasure goes on by itself.", retry_after=10)
            await asyncio.sleep(_LOOK_S)

    def _delete_files(self, order: _Order) -> None:
        folders = self._folders
        doomed = [folders.snapshot(each) for each in order.snapshots if is_uuid7(each)]
        doomed += [place(each) for each in order.runs if is_uuid7(each) for place in (folders.run, folders.adapter)]
        for path in doomed:
            # With what an interrupted export or freeze left beside it under a name of its own.
            for each in (path, *path.parent.glob(f"*{path.name}*")):
                _remove(each)

    def _unknown_snapshots(self) -> list[Path]:
        """Folders of snapshots, but for those of the last minute: their row may be on its way."""
        folder = self._folders.data / "snapshots"
        found = [path for path in folder.iterdir() if is_uuid7(path.name)] if folder.is_dir() else []
        return [path for path in found if time.time() - path.stat().st_mtime > _FRESH_S]

    def _tidy_backups(self, delete: bool) -> tuple[tuple[str, ...], int]:
        """Names of backups that hold the person, and how many were deleted."""
        found = sorted(self._backups.glob("*.db*")) if self._backups.is_dir() else []
        if self._database is not None:
            found += sorted(self._database.parent.glob(f"{self._database.name}.replaced-*"))
        if not delete:
            return tuple(path.name for path in found if not path.name.endswith(".sha256")), 0
        for path in found:
            _remove(path)
        return (), sum(not path.name.endswith(".sha256") for path in found)

    async def _note(self, order: _Order) -> None:
        if order.audited:
            return
        details: dict[str, Any] = {
            "counts": dict(order.counts),
            "runs": len(order.runs),
            "snapshots": len(order.snapshots),
        }
        if self._live is None:
            details["via"] = "command line"
        record = AuditRecord(
            id=uuid7(),
            at=datetime.now(UTC),
            actor=order.actor,
            action="user.delete",
            target=order.user_id,
            details=details,
            request_id=request_id_var.get(),
            address=order.address,
        )
        logger.info("a person was erased", extra={"data": {"user_id": order.user_id, **details}})
        await self._stores.audit.add(record)
        await self._save(replace(order, audited=True))

    async def _work(self) -> None:
        while True:
            try:
                await self._resume()
            except AprendizError as error:
                logger.warning("an erasure is not finished and is tried again", extra={"data": {"error": error.slug}})
            except Exception:
                logger.exception("An erasure failed; it is tried again.")
            await asyncio.sleep(_POLL_S)

    async def _resume(self) -> None:
        for path in sorted(self._orders.glob("*.json")) if self._orders.is_dir() else ():
            try:
                await self._again(path.stem)
            except AprendizError as error:  # the others do not wait for this one
                data = {"user_id": path.stem, "error": error.slug}
                logger.warning("an erasure is not finished and is tried again", extra={"data": data})
        for user_id, since in tuple(self._late.items()):
            if await self._stores.people.snapshots_of(user_id):
                async with self._lock:
                    await self._go(_Order(user_id, None, delete_backups=False, audited=True))
            if time.monotonic() - since > _LATE_S:
                self._late.pop(user_id, None)

    async def _again(self, user_id: str) -> None:
        async with self._lock:
            order = await asyncio.to_thread(self._read, user_id) if is_uuid7(user_id) else None
            if order is not None:
                logger.info("an erasure goes on", extra={"data": {"user_id": order.user_id}})
                await self._go(order)

    def _path(self, user_id: str) -> Path:
        return self._orders / f"{user_id}.json"

    def _read(self, user_id: str) -> _Order | None:
        found = read_json(self._path(user_id))
        if found is None:
            return None
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        return _Order(**values)

    async def _save(self, order: _Order) -> _Order:
        await asyncio.to_thread(self._write, order)
        return order

    def _write(self, order: _Order) -> None:
        try:
            make_folder(self._orders)
            write_json(self._path(order.user_id), asdict(order))
        except OSError as error:
            raise StorageUnavailable("The erasure cannot be written down, so it was not begun. Free some space.") from error


def erasure(settings: Settings, database: Database, live: Live | None) -> Erasure:
    """An `Erasure` on the repositories of ``database``. Raises ConfigurationError for a bad database URL."""
    location = locate(settings)
    return Erasure(
        Folders(settings.data_dir),
        backups=location.backups,
        database=location.path,
        stores=Stores(
            users=Users(database),
            sessions=Sessions(database),
            snapshots=Snapshots(database),
            runs=Runs(database),
            people=Erased(database),
            audit=Audit(database),
            disk=database,
        ),
        live=live,
    )


def _remove(path: Path) -> None:
    """Deletes a file, a link or a folder with all that is in it. Raises StorageUnavailable."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageUnavailable("A file that has to go could not be deleted. The erasure goes on by itself.") from error
