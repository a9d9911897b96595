"""Threads of predictions. Their turns are the predictions that carry their id, and go with them; so does what was summed up."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Text, and_, cast, delete, func, or_, select, update

from app.core.records import ConversationRecord
from app.db.database import Database
from app.db.erased import note_costs
from app.db.rows import add, record_of, records_of
from app.db.schema import conversations, predictions
from app.db.turns import turns_of

_SEARCHED: Final = 2000
"""Turns of a user that a search reads, the newest."""


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

    async def list(
        self, user_id: str, *, limit: int = 100, after: str | None = None, containing: str | None = None
    ) -> builtins.list[ConversationRecord]:
        """A user's conversations, newest first.

        Args:
            after: the last id of the page before.
            containing: only those with this in the title, or in a question or an answer of the user's newest 2,000 turns. Case
                does not count, but for letters beyond ASCII on SQLite.
        """
        query = select(conversations).where(conversations.c.user_id == user_id).order_by(conversations.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(conversations.c.id < after)

        def work(connection: Connection) -> builtins.list[ConversationRecord]:
            if containing is None:
                return records_of(ConversationRecord, connection.execute(query))
            said = _conversations_with(connection, user_id, containing)
            there = conversations.c.title.icontains(containing, autoescape=True) | conversations.c.id.in_(said)
            return records_of(ConversationRecord, connection.execute(query.where(there)))

        return await self._database.read(work)

    async def rename(self, conversation_id: str, title: str, *, user_id: str) -> ConversationRecord | None:
        """Gives a user's conversation another title and returns it as it is then, or None."""
        mine = and_(conversations.c.id == conversation_id, conversations.c.user_id == user_id)

        def work(connection: Connection) -> ConversationRecord | None:
            connection.execute(update(conversations).where(mine).values(title=title))
            return record_of(ConversationRecord, connection.execute(select(conversations).where(mine)).one_or_none())

        return await self._database.write(work)

    async def count_turns(self, conversation_id: str, *, user_id: str, after: str | None = None) -> int:
        """How many whole answers a user's conversation has; ``after``: behind this id."""
        query = select(func.count()).select_from(predictions).where(turns_of(conversation_id, user_id, after))
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))

    async def summarise(
        self, conversation: ConversationRecord, summary: str, *, covered: Sequence[str]
    ) -> ConversationRecord | None:
        """Stores what the turns up to the last of ``covered`` were about, in place of the earlier summary.

        None, and nothing is stored, where the conversation is gone or its summary another one than ``conversation`` says, or
        where its turns since the earlier summary up to that one are not exactly ``covered``: one was deleted meanwhile, or one
        that began earlier was stored late.
        """
        mine = and_(conversations.c.id == conversation.id, conversations.c.user_id == conversation.user_id)
        until = covered[-1]

        def work(connection: Connection) -> ConversationRecord | None:
            now = record_of(ConversationRecord, connection.execute(select(conversations).where(mine)).one_or_none())
            if now is None or (now.summary, now.summary_until) != (conversation.summary, conversation.summary_until):
                return None
            turns = turns_of(conversation.id, conversation.user_id, conversation.summary_until)
            there = set(connection.execute(select(predictions.c.id).where(turns, predictions.c.id <= until)).scalars())
            if there != set(covered):
                return None
            connection.execute(update(conversations).where(mine).values(summary=summary, summary_until=until))
            return replace(now, summary=summary, summary_until=until)

        return await self._database.write(work)

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


def _conversations_with(connection: Connection, user_id: str, text: str) -> set[str]:
    """Ids of a user's conversations in whose newest turns ``text`` was asked or answered."""
    row = predictions.c
    newest = select(row.id).where(row.user_id == user_id, row.conversation_id.is_not(None)).order_by(row.id.desc())
    # The input is JSON, with the names of its fields, and with earlier turns: whether it was asked here is looked at below.
    written = or_(row.output.icontains(text, autoescape=True), cast(row.input, Text).icontains(text, autoescape=True))
    query = select(row.conversation_id, row.input, row.output).where(
        row.user_id == user_id, row.id.in_(newest.limit(_SEARCHED)), written
    )
    found: set[str] = set()
    for each in connection.execute(query.execution_options(yield_per=50)):
        asked = each.input["messages"][-1].get("content")
        if each.conversation_id not in found and (
            text.casefold() in each.output.casefold() or (isinstance(asked, str) and text.casefold() in asked.casefold())
        ):
            found.add(each.conversation_id)
    return found
