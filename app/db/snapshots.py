"""Frozen datasets and where each of their rows came from. The texts lie in files; here stands who and what, for lineage."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from app.core.records import SnapshotRecord, SnapshotRowRecord
from app.db.database import Database
from app.db.rows import record_of, records_of, values_of
from app.db.schema import snapshot_rows, snapshots

_BATCH = 500


class Snapshots:
    """The tables ``snapshots`` and ``snapshot_rows``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, snapshot: SnapshotRecord, rows: Sequence[SnapshotRowRecord]) -> None:
        """Stores a snapshot with all its rows, in one transaction."""

        def work(connection: Connection) -> None:
            connection.execute(insert(snapshots).values(values_of(snapshot)))
            for start in range(0, len(rows), _BATCH):
                connection.execute(insert(snapshot_rows), [values_of(row) for row in rows[start : start + _BATCH]])

        await self._database.write(work)

    async def get(self, snapshot_id: str) -> SnapshotRecord | None:
        """One snapshot, or None."""
        query = select(snapshots).where(snapshots.c.id == snapshot_id)
        return await self._database.read(lambda connection: record_of(SnapshotRecord, connection.execute(query).one_or_none()))

    async def list(self, *, limit: int = 100, after: str | None = None) -> builtins.list[SnapshotRecord]:
        """Snapshots, newest first. ``after``: the last id of the page before."""
        query = select(snapshots).order_by(snapshots.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(snapshots.c.id < after)
        return await self._database.read(lambda connection: records_of(SnapshotRecord, connection.execute(query)))

    async def rows(self, snapshot_id: str) -> builtins.list[SnapshotRowRecord]:
        """All rows of a snapshot, in their order."""
        query = select(snapshot_rows).where(snapshot_rows.c.snapshot_id == snapshot_id).order_by(snapshot_rows.c.position)
        return await self._database.read(lambda connection: records_of(SnapshotRowRecord, connection.execute(query)))

    async def rows_of_person(self, user_id: str, raters: Sequence[str] = ()) -> builtins.list[SnapshotRowRecord]:
        """Rows of any snapshot that hold this person's data: what the person asked or judged. ``raters``: further names."""
        query = select(snapshot_rows).where(
            or_(snapshot_rows.c.user_id == user_id, snapshot_rows.c.rater.in_([user_id, *raters]))
        )
        return await self._database.read(lambda connection: records_of(SnapshotRowRecord, connection.execute(query)))

    async def rows_of_feedback(self, feedback_ids: Sequence[str]) -> builtins.list[SnapshotRowRecord]:
        """Rows of any snapshot that were made of these feedbacks."""
        query = select(snapshot_rows).where(snapshot_rows.c.feedback_id.in_(feedback_ids))
        return await self._database.read(lambda connection: records_of(SnapshotRowRecord, connection.execute(query)))

    async def history(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """What the splits of all snapshots were: groups held out, groups trained on, feedback held out."""
        groups = select(snapshot_rows.c.split, snapshot_rows.c.group).where(snapshot_rows.c.split.in_(("heldout", "train")))
        held = select(snapshot_rows.c.feedback_id).where(
            snapshot_rows.c.split == "heldout", snapshot_rows.c.feedback_id.is_not(None)
        )

        def work(connection: Connection) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
            sides: dict[str, set[str]] = {"heldout": set(), "train": set()}
            for split, group in connection.execute(groups.distinct()):
                sides[split].add(group)
            feedback = frozenset(connection.execute(held.distinct()).scalars())
            return frozenset(sides["heldout"]), frozenset(sides["train"]), feedback

        return await self._database.read(work)

    async def set_report(self, snapshot_id: str, *, report: Mapping[str, Any], erased_at: datetime | None) -> None:
        """Replaces the report, and notes since when the files are gone."""
        query = update(snapshots).where(snapshots.c.id == snapshot_id).values(report=report, erased_at=erased_at)
        await self._database.write(lambda connection: connection.execute(query))
