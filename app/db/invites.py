"""Invites: who may register, with which role. Only the hash of a token is kept. Using one up is `app.db.users`' work."""

from __future__ import annotations

import builtins
from datetime import datetime

from sqlalchemy import delete, select

from app.core.records import InviteRecord
from app.core.types import Role
from app.db.database import Database
from app.db.rows import add, records_of
from app.db.schema import invites


class Invites:
    """The table ``invites``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, invite: InviteRecord) -> None:
        """Adds one. Raises Conflict as `app.db.rows.add`."""
        await add(self._database, invites, invite)

    async def list(self, *, now: datetime) -> builtins.list[InviteRecord]:
        """Those that can still be used, newest first."""
        query = select(invites).where(invites.c.used_at.is_(None), invites.c.expires_at > now).order_by(invites.c.id.desc())
        return await self._database.read(lambda connection: records_of(InviteRecord, connection.execute(query)))

    async def delete(self, invite_id: str) -> bool:
        """Withdraws one that is not used yet. Returns whether there was one; used ones stay as a record."""
        query = delete(invites).where(invites.c.id == invite_id, invites.c.used_at.is_(None))
        return await self._database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def delete_unused_of_role(self, role: Role, *, created_by: None) -> None:
        """Withdraws the unused invites of a role that no account made: those of earlier first runs."""
        query = delete(invites).where(invites.c.role == role, invites.c.used_at.is_(None), invites.c.created_by.is_(created_by))
        await self._database.write(lambda connection: connection.execute(query))
