"""Which predictions are the turns of a conversation, and what goes from it with one of them. For the repositories."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, select, update

from app.db.schema import conversations, predictions


def turns_of(conversation_id: str, user_id: str, after: str | None = None) -> ColumnElement[bool]:
    """Which predictions are the turns of a user's conversation, behind the id ``after``."""
    row = predictions.c
    there = and_(row.conversation_id == conversation_id, row.user_id == user_id, row.status == "ok")
    return there if after is None else and_(there, row.id > after)


def drop_summary(connection: Connection, prediction_id: str, user_id: str) -> None:
    """Takes out the summary that covers a user's prediction. Called in the transaction that deletes or empties it."""
    row = conversations.c
    mine = and_(predictions.c.id == prediction_id, predictions.c.user_id == user_id)
    within = select(predictions.c.conversation_id).where(mine).scalar_subquery()
    covers = and_(row.id == within, row.summary_until >= prediction_id)
    connection.execute(update(conversations).where(covers).values(summary=None, summary_until=None))
