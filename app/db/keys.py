"""API keys: only their hash and their first characters are kept. Whether a key is good now is for ``security`` to judge."""

from __future__ import annotations

import builtins
from datetime import datetime

from sqlalchemy import select, update

from app.core.records import KeyRecord
from app.db.database import Database
from app.db.rows import add, record_of, records_of
from app.db.schema import api_keys


class Keys:
    """The table ``api_keys``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, key: KeyRecord) -> None:
        """Adds one. Raises Conflict as `app.db.rows.add`."""
        await add(self._database, api_keys, key)

    async def by_hash(self, key_hash: str) -> KeyRecord | None:
        """The key with that hash, revoked and expired ones too, or None."""
        query = select(api_keys).where(api_keys.c.key_hash == key_hash)
        return await self._database.read(lambda connection: record_of(KeyRecord, connection.execute(query).one_or_none()))

    async def list(self, user_id: str) -> builtins.list[KeyRecord]:
        """All keys of a user, newest first."""
        query = select(api_keys).where(api_keys.c.user_id == user_id).order_by(api_keys.c.id.desc())
        return await self._database.read(lambda connection: records_of(KeyRecord, connection.execute(query)))

    async def revoke(self, key_id: str, *, user_id: str | None = None, now: datetime) -> bool:
        """Ends a key (``user_id``: only if it is that user's). Returns whether it was live."""
        query = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)).values(revoked_at=now)
        if user_id is not None:
            query = query.where(api_keys.c.user_id == user_id)
        return await self._database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def touch(self, key_id: str, *, now: datetime) -> None:
        """Notes that a key was used."""
        query = update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now)
        await self._database.write(lambda connection: connection.execute(query))
