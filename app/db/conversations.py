"""Threads of predictions. Their turns are the predictions that carry their id, and go with them."""

from __future__ import annotations

import builtins
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from app.core.records import ConversationRecord
from app.db.database import Database
from app.db.erased import note_costs
from app.db.rows import add, record_of, records_of
from app.db.schema import conversations, predictions


class Conversations:
    """The table ``conversations``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, conversation: ConversationRecord) -> None:
        """Adds one. Raises Conflict as `app.db.rows.add`."""
        await add(self._database, conversations, conversation)

    async def get(self, conversation_id: str, *, user_id: str) -> ConversationRecord | None:
        """A user's conversation, or None: absent and another's are the same."""
        query = select(conversations).where(conversations.c.id == conversation_id, conversations.c.user_id == user_id)
        return await self._database.read(
            lambda connection: record_of(ConversationRecord, connection.execute(query).one_or_none())
        )

    async def list(self, user_id: str, *, limit: int = 100, after: str | None = None) -> builtins.list[ConversationRecord]:
        """A user's conversations, newest first; ``after``: the last id of the page before."""
        query = select(conversations).where(conversations.c.user_id == user_id).order_by(conversations.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(conversations.c.id < after)
        return await self._database.read(lambda connection: records_of(ConversationRecord, connection.execute(query)))

    async def touch(self, conversation_id: str, *, now: datetime) -> None:
        """Notes a new turn."""
        query = update(conversations).where(conversations.c.id == conversation_id).values(updated_at=now)
        await self._database.write(lambda connection: connection.execute(query))

    async def delete(self, conversation_id: str, *, user_id: str) -> bool:
        """Removes a user's conversation with its predictions and the feedback on them. Returns whether there was one."""
        query = delete(conversations).where(conversations.c.id == conversation_id, conversations.c.user_id == user_id)

        def work(connection: Connection) -> bool:
            note_costs(connection, (predictions.c.conversation_id == conversation_id) & (predictions.c.user_id == user_id))
            return connection.execute(query).rowcount > 0

        return await self._database.write(work)
