"""Approved corrections as examples, and which of them a version was trained on. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select

from app.core.errors import StorageUnavailable
from app.core.records import FeedbackRecord, PredictionRecord
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.rows import records_of
from app.db.schema import feedback, predictions, runs, snapshot_rows

_log = logging.getLogger(__name__)

_BATCH = 200

State = tuple[int, datetime | None]
"""How many there are, and when the last of them was reviewed: changes whenever the set does."""


class Examples:
    """Current, approved feedback with a correction, the newest ``most`` of it."""

    def __init__(self, database: Database, *, most: int = 5000) -> None:
        self._database = database
        self._feedback = Feedback(database)
        self._most = most

    async def state(self) -> State:
        """Cheap to ask for every second."""
        newest = self._newest().subquery()
        query = select(func.count(), func.max(newest.c.reviewed_at))

        def work(connection: Connection) -> State:
            row = connection.execute(query).one()
            return int(row[0]), row[1]

        return await self._database.read(work)

    async def ids(self) -> dict[str, datetime | None]:
        """Their ids, each with when it was reviewed, newest first."""
        query = self._newest()
        return await self._database.read(lambda connection: {row.id: row.reviewed_at for row in connection.execute(query)})

    async def records(self, ids: Sequence[str]) -> list[tuple[FeedbackRecord, PredictionRecord]]:
        """These, each with the prediction it corrects; what is gone or damaged is left out."""
        found: list[tuple[FeedbackRecord, PredictionRecord]] = []
        for start in range(0, len(ids), _BATCH):
            said = [each for feedback_id in ids[start : start + _BATCH] if (each := await self._whole(feedback_id)) is not None]
            about = select(predictions).where(predictions.c.id.in_([each.prediction_id for each in said]))
            answers = await self._database.read(
                lambda connection, about=about: records_of(PredictionRecord, connection.execute(about))  # type: ignore[misc]
            )
            by_id = {answer.id: answer for answer in answers}
            found += [(each, by_id[each.prediction_id]) for each in said if each.prediction_id in by_id]
        return found

    async def absorbed(self, version: str) -> frozenset[str]:
        """Ids of the feedback that runs which made this version were trained on."""
        query = (
            select(snapshot_rows.c.feedback_id)
            .join(runs, runs.c.snapshot_id == snapshot_rows.c.snapshot_id)
            .where(runs.c.version == version, snapshot_rows.c.split == "train", snapshot_rows.c.feedback_id.is_not(None))
        )
        return await self._database.read(lambda connection: frozenset(connection.execute(query).scalars()))

    def _newest(self) -> Select[Any]:
        return (
            select(feedback.c.id, feedback.c.reviewed_at)
            .where(feedback.c.review == "approved", feedback.c.superseded_at.is_(None), feedback.c.correction.is_not(None))
            .order_by(feedback.c.id.desc())
            .limit(self._most)
        )

    async def _whole(self, feedback_id: str) -> FeedbackRecord | None:
        try:
            return await self._feedback.get(feedback_id)
        except StorageUnavailable as error:
            _log.error("an approved correction is damaged and is not shown", extra={"data": {"reason": error.detail}})
            return None
