"""Answered calls, as they were asked and answered. Written once, never changed; they go with their owner or conversation."""

from __future__ import annotations

import builtins

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict
from app.core.records import PredictionRecord
from app.db.database import Database
from app.db.rows import record_of, records_of, values_of
from app.db.schema import predictions


class Predictions:
    """The table ``predictions``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, prediction: PredictionRecord) -> None:
        """Stores one, in a group commit with others.

        Raises Conflict where its account or conversation was deleted meanwhile, or the id exists.
        """
        try:
            await self._database.append(predictions, values_of(prediction))
        except IntegrityError as error:
            raise Conflict(
                "The account or the conversation of this answer was deleted meanwhile; it was not stored."
            ) from error

    async def get(self, prediction_id: str, *, user_id: str | None = None) -> PredictionRecord | None:
        """One prediction (``user_id``: only if it is that user's), or None."""
        query = select(predictions).where(predictions.c.id == prediction_id)
        if user_id is not None:
            query = query.where(predictions.c.user_id == user_id)
        return await self._database.read(
            lambda connection: record_of(PredictionRecord, connection.execute(query).one_or_none())
        )

    async def of_conversation(self, conversation_id: str, *, user_id: str, limit: int = 100) -> builtins.list[PredictionRecord]:
        """The newest ``limit`` whole answers of a user's conversation, oldest first."""
        query = (
            select(predictions)
            .where(
                predictions.c.conversation_id == conversation_id, predictions.c.user_id == user_id, predictions.c.status == "ok"
            )
            .order_by(predictions.c.created_at.desc(), predictions.c.id.desc())
            .limit(limit)
        )
        newest_first = await self._database.read(lambda connection: records_of(PredictionRecord, connection.execute(query)))
        return newest_first[::-1]
