"""What people say about the versions that answer them, as it comes in: for judging a version while it serves. Reads only.

Every feedback counts here, a superseded one too: what somebody said first must not change because of what came after, or the
judgement would be another one after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select

from app.core.records import FeedbackRecord
from app.db.database import Database
from app.db.feedback import checksum
from app.db.rows import make
from app.db.schema import feedback, predictions

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vote:
    """One feedback as a verdict on a version. ``asked``: id of the prediction, which tells when it was made.

    ``person``: who rated, or, for a vote by token, whose account asked. ``session``: the conversation, else the key, else the
    account, for one day. ``good``: None where it says nothing (a comment alone).
    """

    feedback_id: str
    version: str
    asked: str
    person: str
    session: str
    good: bool | None


class Votes:
    """The tables ``feedback`` and ``predictions``, read together."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def since(self, after: str, versions: Sequence[str], *, limit: int = 1000) -> tuple[list[Vote], str | None]:
        """Votes on answers of ``versions`` among the next ``limit`` feedback rows after the id ``after``, oldest first.

        A preference is a vote for the one answer and one against the other; between two answers of one version it is none. The
        second value is the id to go on after, None where there was nothing. Damaged rows are left out, and logged.
        """
        other = predictions.alias("other")
        columns = [
            each.label(f"{name}_{each.name}")
            for name, table in (("p", predictions), ("o", other))
            for each in (table.c.id, table.c.version, table.c.user_id, table.c.key_id, table.c.conversation_id, table.c.status)
        ]
        query = (
            select(feedback, *columns)
            .join(predictions, predictions.c.id == feedback.c.prediction_id)
            .outerjoin(other, other.c.id == feedback.c.preferred_over)
            .where(feedback.c.id > after, or_(predictions.c.version.in_(versions), other.c.version.in_(versions)))
            .order_by(feedback.c.id)
            .limit(limit)
        )

        def read(connection: Connection) -> list[Any]:
            return list(connection.execute(query).mappings())

        rows = await self._database.read(read)
        votes = [vote for row in rows for vote in _votes(row) if vote.version in versions]
        return votes, rows[-1]["id"] if rows else None


def _votes(row: Any) -> list[Vote]:
    said = make(FeedbackRecord, {column.name: row[column.name] for column in feedback.c})
    if checksum(said) != said.checksum:
        _log.error("a feedback row does not match its checksum and is not counted", extra={"data": {"feedback_id": said.id}})
        return []
    if said.review == "rejected":
        return []
    if said.preferred_over is None:
        return [_vote(row, "p", said, _good(said))]
    if row["p_version"] == row["o_version"]:
        return []
    return [_vote(row, "p", said, True), _vote(row, "o", said, False)]


def _vote(row: Any, side: str, said: FeedbackRecord, good: bool | None) -> Vote:
    asked_by = row[f"{side}_user_id"]
    session = row[f"{side}_conversation_id"] or f"{row[f'{side}_key_id'] or asked_by} {said.created_at.date().isoformat()}"
    return Vote(
        feedback_id=said.id,
        version=row[f"{side}_version"],
        asked=row[f"{side}_id"],
        person=said.user_id or asked_by,
        session=session,
        good=good if row[f"{side}_status"] == "ok" else None,
    )


def _good(said: FeedbackRecord) -> bool | None:
    if said.correction is not None:
        return False
    return None if said.rating is None else said.rating == "up"
