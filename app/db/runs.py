"""Training runs, their attempts at the gate, and versions on trial with a share of the sessions."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import func, insert, select, update

from app.core.records import CanaryRecord, GateAttemptRecord, RunRecord, RunState
from app.db.database import Database
from app.db.rows import add, record_of, records_of, values_of
from app.db.schema import canaries, gate_attempts, runs

OPEN: tuple[RunState, ...] = ("queued", "running")
"""States of runs that have not ended."""


class Runs:
    """The table ``runs``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, run: RunRecord) -> None:
        """Stores a new run."""
        await add(self._database, runs, run)

    async def get(self, run_id: str) -> RunRecord | None:
        """One run, or None."""
        query = select(runs).where(runs.c.id == run_id)
        return await self._database.read(lambda connection: record_of(RunRecord, connection.execute(query).one_or_none()))

    async def list(
        self, *, states: Sequence[RunState] = get_args(RunState), limit: int = 100, after: str | None = None
    ) -> builtins.list[RunRecord]:
        """Runs, newest first. ``after``: the last id of the page before."""
        query = select(runs).where(runs.c.state.in_(states)).order_by(runs.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(runs.c.id < after)
        return await self._database.read(lambda connection: records_of(RunRecord, connection.execute(query)))

    async def of_snapshots(self, snapshot_ids: Sequence[str]) -> builtins.list[RunRecord]:
        """Runs that trained on one of these snapshots."""
        query = select(runs).where(runs.c.snapshot_id.in_(snapshot_ids)).order_by(runs.c.id)
        return await self._database.read(lambda connection: records_of(RunRecord, connection.execute(query)))

    async def of_version(self, version: str) -> RunRecord | None:
        """The newest run that made this version, or None."""
        query = select(runs).where(runs.c.version == version).order_by(runs.c.id.desc()).limit(1)
        return await self._database.read(lambda connection: record_of(RunRecord, connection.execute(query).one_or_none()))

    async def started_since(self, since: datetime) -> int:
        """How many runs were ordered since then."""
        query = select(func.count()).select_from(runs).where(runs.c.created_at >= since)
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))

    async def update(
        self, run_id: str, *, only_in: Sequence[RunState] = get_args(RunState), **changes: Any
    ) -> RunRecord | None:
        """Changes fields of a run by name, if it is in one of the states ``only_in``; returns it as it is then, or None."""

        def work(connection: Any) -> RunRecord | None:
            this = runs.c.id == run_id
            done = connection.execute(update(runs).where(this, runs.c.state.in_(only_in)).values(changes))
            if done.rowcount == 0:
                return None
            return record_of(RunRecord, connection.execute(select(runs).where(this)).one_or_none())

        return await self._database.write(work)


class GateAttempts:
    """The table ``gate_attempts``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, attempt: GateAttemptRecord) -> None:
        """Stores an attempt."""
        await add(self._database, gate_attempts, attempt)

    async def list(self) -> builtins.list[GateAttemptRecord]:
        """All attempts, oldest first."""
        query = select(gate_attempts).order_by(gate_attempts.c.id)
        return await self._database.read(lambda connection: records_of(GateAttemptRecord, connection.execute(query)))


class Canaries:
    """The table ``canaries``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, canary: CanaryRecord) -> None:
        """Stores a new canary."""
        query = insert(canaries).values(values_of(canary))
        await self._database.write(lambda connection: connection.execute(query))

    async def running(self, alias: str) -> CanaryRecord | None:
        """The canary of an alias that is on trial now, or None."""
        query = select(canaries).where(canaries.c.alias == alias, canaries.c.state == "running")
        query = query.order_by(canaries.c.id.desc()).limit(1)
        return await self._database.read(lambda connection: record_of(CanaryRecord, connection.execute(query).one_or_none()))

    async def list(self, *, limit: int = 100) -> builtins.list[CanaryRecord]:
        """Canaries, newest first."""
        query = select(canaries).order_by(canaries.c.id.desc()).limit(limit)
        return await self._database.read(lambda connection: records_of(CanaryRecord, connection.execute(query)))

    async def update(self, canary_id: str, **changes: Any) -> None:
        """Changes fields of a canary by name."""
        query = update(canaries).where(canaries.c.id == canary_id).values(changes)
        await self._database.write(lambda connection: connection.execute(query))
