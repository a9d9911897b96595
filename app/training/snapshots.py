"""Snapshots: feedback frozen into a dataset of train and held-out rows, with a report and the lineage of every row.

The files lie in ``<data>/snapshots/<id>`` and hold texts, but nobody's name; who said what stands in the database. A snapshot
is never changed. It does not choose hyper-parameters and it trains nothing.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import Conflict, StorageFull, StorageUnavailable, TooLittleFeedback
from app.core.files import hash_file, sync
from app.core.ids import uuid7
from app.core.records import SnapshotRecord, SnapshotRowRecord
from app.core.settings import Settings
from app.core.types import Principal
from app.training.assembly import FILES, Assembly, Origin, Plan, open_private
from app.training.datasets import Review, Triple, admitted, private, snapshot_rows, waits
from app.training.quarantine import Rules
from app.training.reports import choose_method, missing, report_of
from app.training.rowfiles import read_rows
from app.training.splitting import History

__all__ = ["Floors", "SnapshotBuilder", "SnapshotConfig", "choose_method", "snapshot_folder", "verify"]

RULES_VERSION: Final = 3
"""Goes up when the same feedback and configuration would give another dataset."""
_STALE_S = 3600
"""No snapshot takes so long; folders of a process that may still be at work are left alone."""


class Floors(BaseModel):
    """The least that a method can learn from, counted after folding and quarantine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sft: int = Field(16, ge=1, description="Corrections to train on: one optimizer step of the default batch.")
    dpo: int = Field(24, ge=1, description="Pairs to train on: preferences, and corrections with the answer they replace.")
    kto: int = Field(40, ge=2, description="Ratings to train on.")
    kto_each: int = Field(8, ge=1, description="Ratings of either kind to train on.")
    groups: int = Field(5, ge=1, description="Different prompts held out: with fewer no gate can tell gain from luck.")


class SnapshotConfig(BaseModel):
    """How a dataset is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    method: Literal["auto", "sft", "dpo", "kto"] = Field("auto", description="Whose floor must be met; auto: that of any.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of the prompts that are held out to judge with.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Which prompts are held out.")
    most_per_person: float = Field(0.25, gt=0, le=1, description="Most of the weight of a kind that one person may have.")
    near_duplicate: float = Field(0.9, gt=0, le=1, description="From this similarity on two prompts are one.")
    quarantine: bool = Field(True, description="Set aside what looks wrong until an admin approves it.")
    burst_ratings: int = Field(30, ge=2, description="More ratings of one person within a minute are set aside.")
    source: Literal["feedback", "file"] = Field("feedback", description="Where the rows come from.")
    floors: Floors = Floors()

    def plan(self) -> Plan:
        """The same for the code that carries it out."""
        return Plan(
            holdout=self.holdout,
            seed=self.seed,
            most_per_person=self.most_per_person,
            near_duplicate=self.near_duplicate,
            floors=self.floors.model_dump(),
            quarantine=Rules(burst_ratings=self.burst_ratings) if self.quarantine else None,
            set_aside_secrets=self.quarantine,
        )


class FeedbackSource(Protocol):
    """What is read of `app.db.feedback.Feedback`."""

    def export(self, *, batch: int = 500) -> AsyncIterator[Triple]: ...


class SnapshotStore(Protocol):
    """What is used of `app.db.snapshots.Snapshots`."""

    async def add(self, snapshot: SnapshotRecord, rows: list[SnapshotRowRecord]) -> None: ...
    async def history(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]: ...


def snapshot_folder(settings: Settings, snapshot_id: str) -> Path:
    """Where the files of a snapshot lie."""
    return settings.data_dir / "snapshots" / snapshot_id


class SnapshotBuilder:
    """Makes snapshots, one at a time."""

    def __init__(self, *, feedback: FeedbackSource, snapshots: SnapshotStore, settings: Settings) -> None:
        self._feedback = feedback
        self._snapshots = snapshots
        self._settings = settings
        self._one = asyncio.Lock()

    async def build(self, config: SnapshotConfig, *, actor: Principal | None) -> SnapshotRecord:
        """Freezes the current feedback.

        Raises:
            TooLittleFeedback: below the floor of the method; says what is missing. StorageFull, StorageUnavailable.
        """
        async with self._one, self._assembly(config) as assembly:
            intake = await self._take_feedback(assembly)
            return await self._store(assembly, intake, config, actor)

    async def build_from_file(self, path: Path, config: SnapshotConfig, *, actor: Principal | None) -> SnapshotRecord:
        """Freezes the rows of a JSONL file in one of TRL's forms, see `app.training.rowfiles`. The whole file or nothing.

        Raises:
            InvalidRequest: what is wrong with the file, and in which line. PayloadTooLarge. As `build`.
        """
        config = config.model_copy(update={"source": "file"})
        async with self._one, self._assembly(config) as assembly:
            count = await asyncio.to_thread(_take_file, assembly, path)
            return await self._store(assembly, Counter(read=count), config, actor)

    async def preview(self, config: SnapshotConfig) -> Mapping[str, Any]:
        """The report that `build` would give now; nothing is stored."""
        async with self._one, self._assembly(config) as assembly:
            intake = await self._take_feedback(assembly)
            return await self._settle(assembly, intake, config)

    async def _take_feedback(self, assembly: Assembly) -> Counter[str]:
        intake: Counter[str] = Counter()
        page: list[Triple] = []
        review = self._settings.training.review
        async for triple in self._feedback.export():
            page.append(triple)
            if len(page) == 500:
                await asyncio.to_thread(_take, assembly, page, review, intake)
                page = []
        await asyncio.to_thread(_take, assembly, page, review, intake)
        return intake

    async def _settle(self, assembly: Assembly, intake: Counter[str], config: SnapshotConfig) -> dict[str, Any]:
        heldout, trained, held_feedback = await self._snapshots.history()
        await asyncio.to_thread(assembly.settle, History(heldout=heldout, trained=trained), held_feedback)
        return await asyncio.to_thread(report_of, assembly, intake, config.floors.model_dump())

    async def _store(
        self, assembly: Assembly, intake: Counter[str], config: SnapshotConfig, actor: Principal | None
    ) -> SnapshotRecord:
        report = await self._settle(assembly, intake, config)
        if config.method == "auto":
            choose_method(report)
        elif words := missing(report, config.method):
            raise TooLittleFeedback(words)
        snapshot_id = uuid7()
        record = SnapshotRecord(
            id=snapshot_id,
            created_at=datetime.now(UTC),
            created_by=None if actor is None else actor.user_id,
            digest="",
            source=config.source,
            config=config.model_dump(mode="json"),
            report=report,
        )
        folder = snapshot_folder(self._settings, snapshot_id)
        freezing = asyncio.create_task(asyncio.to_thread(_freeze, assembly, record, folder))
        try:
            record, rows = await asyncio.shield(freezing)
            await self._snapshots.add(record, rows)
        except BaseException:
            # A thread cannot be ended: without waiting for it, it could give the files their name after they were removed.
            await asyncio.gather(freezing, return_exceptions=True)
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
            raise
        return record

    @asynccontextmanager
    async def _assembly(self, config: SnapshotConfig) -> AsyncIterator[Assembly]:
        folder = self._settings.data_dir / "snapshots" / f".{uuid7()}.tmp"
        try:
            await asyncio.to_thread(_tidy, folder.parent)
            await asyncio.to_thread(folder.mkdir, mode=0o700)
            with Assembly(folder, config.plan()) as assembly:
                yield assembly
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def verify(snapshot: SnapshotRecord, folder: Path) -> Mapping[str, Any]:
    """The manifest of a snapshot, once its files are found to be what was frozen. Blocking.

    Raises:
        Conflict: the files are gone (erased), missing or damaged.
    """
    if snapshot.erased_at is not None:
        raise Conflict(f"The files of snapshot {snapshot.id} were erased with a person's data. Make a new snapshot.")
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        sound = manifest["digest"] == snapshot.digest and set(manifest["files"]) == set(FILES)
        damaged = [name for name in FILES if hash_file(folder / name) != manifest["files"][name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Conflict(f"The files of snapshot {snapshot.id} are missing or unreadable. Make a new snapshot.") from error
    if damaged or not sound:
        named = ", ".join(damaged) or "manifest.json"
        raise Conflict(f"Snapshot {snapshot.id} is damaged ({named}) and was not used. Make a new snapshot.")
    return manifest


def _tidy(folder: Path) -> None:
    """Removes what a process that was killed left behind: it holds people's words. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _take(assembly: Assembly, page: list[Triple], review: Review, intake: Counter[str]) -> None:
    for triple in page:
        said, prediction, _ = triple
        intake["read"] += 1
        intake["rejected"] += said.review == "rejected"
        intake["waiting"] += waits(said, review)
        if admitted(said, review) is None:
            continue
        if private(prediction):
            intake["context"] += 1
            continue
        origin = Origin(
            feedback_id=said.id,
            prediction_id=prediction.id,
            user_id=prediction.user_id,
            rater=said.rater,
            at=said.created_at.timestamp(),
            approved=said.review == "approved",
        )
        count = len(assembly.rows)
        for row in snapshot_rows(triple, review):
            assembly.add(row, origin)
        intake["without_rows"] += len(assembly.rows) == count


def _take_file(assembly: Assembly, path: Path) -> int:
    count = 0
    for row in read_rows(path):
        assembly.add(row, Origin())
        count += 1
    return count


def _freeze(assembly: Assembly, record: SnapshotRecord, folder: Path) -> tuple[SnapshotRecord, list[SnapshotRowRecord]]:
    """Writes the files under a temporary name, then gives the folder its own. Raises StorageFull, StorageUnavailable."""
    try:
        files = assembly.write()
        rules = {"version": RULES_VERSION, "config": record.config, "files": files}
        record = replace(record, digest=assembly.digest(rules))
        manifest = {
            "id": record.id,
            "created_at": record.created_at.isoformat(),
            "digest": record.digest,
            "rules_version": RULES_VERSION,
            "config": record.config,
            "seed": record.config["seed"],
            "files": files,
            "report": record.report,
        }
        with open_private(assembly.folder / "manifest.json") as file:
            file.write(json.dumps(manifest, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        sync(assembly.folder)
        assembly.close()
        assembly.folder.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise _unavailable(error) from error
    return record, assembly.records(record.id)


def _unavailable(error: OSError) -> StorageUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The disk is full: the snapshot was not made. Free some space and try again.")
    return StorageUnavailable("The data folder cannot be read or written: the snapshot was not made.")
