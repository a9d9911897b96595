"""Versions that were loaded here, and aliases that point at them. A move is one transaction; loading is not our work."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from app.core.records import UNSET, AliasRecord, Unset, VersionRecord
from app.db.database import Database
from app.db.rows import make, record_of, records_of, values_of
from app.db.schema import aliases, versions

_TARGET = ("provider", "model", "device", "adapter", "version")
DEPTH = 20
"""So many moves of an alias are kept to be taken back."""


class Versions:
    """The table ``versions``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, version: VersionRecord) -> None:
        """Adds one, or brings its details up to date; the first ``created_at`` stays."""

        def work(connection: Connection) -> None:
            this = versions.c.id == version.id
            if connection.execute(select(versions.c.id).where(this)).first() is None:
                connection.execute(insert(versions).values(values_of(version)))
                return
            changes = values_of(version)
            del changes["id"], changes["created_at"]
            connection.execute(update(versions).where(this).values(changes))

        await self._database.write(work)

    async def list(self) -> builtins.list[VersionRecord]:
        """All versions, the latest first seen at the head."""
        query = select(versions).order_by(versions.c.created_at.desc(), versions.c.id)
        return await self._database.read(lambda connection: records_of(VersionRecord, connection.execute(query)))

    async def get(self, version_id: str) -> VersionRecord | None:
        """One version, or None."""
        query = select(versions).where(versions.c.id == version_id)
        return await self._database.read(lambda connection: record_of(VersionRecord, connection.execute(query).one_or_none()))


class Aliases:
    """The table ``aliases``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> AliasRecord | None:
        """One alias, or None."""
        query = select(aliases).where(aliases.c.name == name)
        return await self._database.read(lambda connection: record_of(AliasRecord, connection.execute(query).one_or_none()))

    async def list(self) -> builtins.list[AliasRecord]:
        """All aliases by name."""
        query = select(aliases).order_by(aliases.c.name)
        return await self._database.read(lambda connection: records_of(AliasRecord, connection.execute(query)))

    async def move(self, alias: AliasRecord, *, previous: Mapping[str, Any] | Unset | None = UNSET) -> AliasRecord:
        """Points an alias at its new target and returns it with ``previous`` as told, else filled from the old row.

        ``previous``: ``{provider, model, device, adapter, version, configured}``, and ``previous`` where there was one before:
        the last `DEPTH` targets. Moving an alias to where it already points (a reload) keeps the ``previous`` that it had, so
        that a rollback still leads somewhere else.
        """

        def work(connection: Connection) -> AliasRecord:
            this = aliases.c.name == alias.name
            row = connection.execute(select(aliases).where(this)).one_or_none()
            if row is None:
                moved = replace(alias, previous=None if isinstance(previous, Unset) else previous)
                connection.execute(insert(aliases).values(values_of(moved)))
                return moved
            before = previous_of(make(AliasRecord, row._mapping), alias) if isinstance(previous, Unset) else previous
            moved = replace(alias, previous=before)
            connection.execute(update(aliases).where(this).values(values_of(moved)))
            return moved

        return await self._database.write(work)


def previous_of(old: AliasRecord, new: AliasRecord) -> Mapping[str, Any] | None:
    """`AliasRecord.previous` of ``new``, which takes the place of ``old``."""
    if all(getattr(old, name) == getattr(new, name) for name in _TARGET):
        return old.previous
    before = {name: getattr(old, name) for name in (*_TARGET, "configured")}
    return _cut({**before, "previous": old.previous} if old.previous else before, DEPTH)


def _cut(previous: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    earlier = previous.get("previous")
    if not earlier:
        return previous
    own = {name: value for name, value in previous.items() if name != "previous"}
    return own if depth <= 1 else {**own, "previous": _cut(earlier, depth - 1)}
