"""What people say about predictions. One current feedback per rater and prediction; earlier ones are kept, as superseded.

Each row carries a SHA-256 over what was said, checked whenever it is read: a damaged row is an error, never training data.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict, IdempotencyMismatch, NotFound, StorageUnavailable
from app.core.records import FeedbackRecord, PredictionRecord, ReviewStatus
from app.db.checksum import content_of, digest
from app.db.database import Database
from app.db.rows import make, values_of
from app.db.schema import feedback, predictions, snapshot_rows, snapshots

_log = logging.getLogger(__name__)

_REVIEW = frozenset({"review", "edited", "reviewed_at", "reviewed_by"})
_MUTABLE = _REVIEW | {"checksum", "review_checksum", "superseded_at"}
_NOT_SAID = _MUTABLE | {"id", "created_at"}

Exported = tuple[FeedbackRecord, PredictionRecord, PredictionRecord | None]
Queued = tuple[FeedbackRecord, PredictionRecord, PredictionRecord | None, str | None]
"""As `Exported`, with the reason for which the newest snapshot set it aside, or None."""


def checksum(record: FeedbackRecord) -> str:
    """SHA-256 over all that never changes in a feedback: not its review, nor when it was superseded."""
    return digest(content_of(record, without=_MUTABLE))


def review_checksum(record: FeedbackRecord) -> str:
    """SHA-256 over what a reviewer decided, and on which feedback."""
    return digest({"id": record.id, **{name: getattr(record, name) for name in _REVIEW}})


class Feedback:
    """The table ``feedback``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, record: FeedbackRecord) -> tuple[FeedbackRecord, bool]:
        """Stores a feedback in place of the rater's earlier one on that prediction, in one transaction.

        Returns the stored record (with its checksum) and whether it is a replay: the rater's idempotency key was used before
        with the same content, and nothing was stored again.

        Raises:
            IdempotencyMismatch: the key was used with other content. NotFound: there is no such prediction (either of them).
            Conflict: the id exists.
        """
        signed = _signed(record)
        return await self._database.write(lambda connection: _store(connection, signed))

    async def get(self, feedback_id: str) -> FeedbackRecord | None:
        """One feedback, or None. Raises StorageUnavailable for a damaged row."""
        found = await self._select(select(feedback).where(feedback.c.id == feedback_id))
        return found[0] if found else None

    async def list(
        self, *, user_id: str | None = None, limit: int = 100, after: str | None = None, current: bool = True
    ) -> builtins.list[FeedbackRecord]:
        """Feedback, newest first, a page at a time.

        ``user_id``: what that user gave; ``current``: without superseded ones; ``after``: the last id of the page before.

        Raises StorageUnavailable for a damaged row.
        """
        query = select(feedback).order_by(feedback.c.id.desc()).limit(limit)
        conditions: builtins.list[ColumnElement[bool]] = []
        if user_id is not None:
            conditions.append(feedback.c.user_id == user_id)
        if after is not None:
            conditions.append(feedback.c.id < after)
        if current:
            conditions.append(feedback.c.superseded_at.is_(None))
        return await self._select(query.where(*conditions))

    async def export(self, *, batch: int = 500) -> AsyncIterator[Exported]:
        """All current feedback, oldest first, each with its prediction and the one it was preferred over (or None).

        Reads ``batch`` rows at a time, so a long export blocks nobody. Raises StorageUnavailable for a damaged row.
        """
        after = ""
        while True:
            page = await self._database.read(lambda connection, after=after: _page(connection, after, batch))  # type: ignore[misc]
            for item in page:
                yield item
            if len(page) < batch:
                return
            after = page[-1][0].id

    async def add_imported(self, bundles: Sequence[tuple[Sequence[PredictionRecord], FeedbackRecord]]) -> int:
        """Stores feedback of another program with the predictions it needs, in one transaction; returns how many were new.

        What a rater gave with the same idempotency key is there already. Raises Conflict where the owner's account is gone.
        """
        try:
            return await self._database.write(lambda connection: _add_imported(connection, bundles))
        except IntegrityError as error:
            raise Conflict("The account that the import would belong to was deleted meanwhile.") from error

    async def queue(self, *, limit: int = 20, after: str | None = None) -> builtins.list[Queued]:
        """What waits for a reviewer, oldest first: first what the newest snapshot set aside, then corrections and imports.

        ``after``: the last id of the page before. Raises StorageUnavailable for a damaged row.
        """
        return await self._database.read(lambda connection: _queue(connection, limit, after))

    async def review(
        self, feedback_id: str, decision: ReviewStatus, *, edited: str | None = None, reviewer: str | None, now: datetime
    ) -> tuple[FeedbackRecord, bool]:
        """Notes what a reviewer decided; ``pending`` takes an earlier decision back, ``edited`` is their wording.

        Returns the record and whether anything changed: the same decision again changes nothing.

        Raises:
            NotFound: there is no such feedback. Conflict: its rater has replaced it, or there is no correction to edit.
            StorageUnavailable: the row is damaged.
        """
        return await self._database.write(lambda connection: _review(connection, feedback_id, decision, edited, reviewer, now))

    async def _select(self, query: Select[Any]) -> builtins.list[FeedbackRecord]:
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_verified(row._mapping) for row in rows]


def _store(connection: Connection, record: FeedbackRecord) -> tuple[FeedbackRecord, bool]:
    if record.idempotency_key is not None:
        same_key = select(feedback).where(
            feedback.c.rater == record.rater, feedback.c.idempotency_key == record.idempotency_key
        )
        row = connection.execute(same_key).one_or_none()
        if row is not None:
            return _replay(_verified(row._mapping), record), True
    _require(connection, record)
    connection.execute(
        update(feedback)
        .where(
            feedback.c.rater == record.rater,
            feedback.c.prediction_id == record.prediction_id,
            feedback.c.superseded_at.is_(None),
        )
        .values(superseded_at=record.created_at)
    )
    connection.execute(insert(feedback).values(values_of(record)))
    return record, False


def _replay(first: FeedbackRecord, again: FeedbackRecord) -> FeedbackRecord:
    """The first record, if ``again`` says the same."""
    if digest(content_of(first, without=_NOT_SAID)) != digest(content_of(again, without=_NOT_SAID)):
        raise IdempotencyMismatch("This idempotency key came before with other content. Use a new key for new feedback.")
    return first


def _require(connection: Connection, record: FeedbackRecord) -> None:
    """Raises NotFound or Conflict where a row that the foreign keys and the primary key need is missing or taken."""
    wanted = {"prediction_id": record.prediction_id, "preferred_over": record.preferred_over}
    found = set(
        connection.execute(select(predictions.c.id).where(predictions.c.id.in_([i for i in wanted.values() if i]))).scalars()
    )
    for name, prediction_id in wanted.items():
        if prediction_id is not None and prediction_id not in found:
            raise NotFound("There is no such prediction.", field=name)
    if connection.execute(select(feedback.c.id).where(feedback.c.id == record.id)).first() is not None:
        raise Conflict("A feedback with this id exists.")


def _add_imported(connection: Connection, bundles: Sequence[tuple[Sequence[PredictionRecord], FeedbackRecord]]) -> int:
    keys = [record.idempotency_key for _, record in bundles]
    known = select(feedback.c.rater, feedback.c.idempotency_key).where(feedback.c.idempotency_key.in_(keys))
    seen = {(row.rater, row.idempotency_key) for row in connection.execute(known)}
    answers: builtins.list[dict[str, Any]] = []
    said: builtins.list[dict[str, Any]] = []
    for needed, record in bundles:
        if (record.rater, record.idempotency_key) not in seen:
            seen.add((record.rater, record.idempotency_key))
            answers += [values_of(each) for each in needed]
            said.append(values_of(_signed(record)))
    if said:
        connection.execute(insert(predictions), answers)
        connection.execute(insert(feedback), said)
    return len(said)


def _signed(record: FeedbackRecord) -> FeedbackRecord:
    """A new record with its checksums."""
    record = replace(record, superseded_at=None)
    record = replace(record, checksum=checksum(record))
    return replace(record, review_checksum="" if record.review == "pending" else review_checksum(record))


def _review(
    connection: Connection, feedback_id: str, decision: ReviewStatus, edited: str | None, reviewer: str | None, now: datetime
) -> tuple[FeedbackRecord, bool]:
    this = feedback.c.id == feedback_id
    row = connection.execute(select(feedback).where(this)).one_or_none()
    if row is None:
        raise NotFound("There is no such feedback.")
    record = _verified(row._mapping)
    if record.superseded_at is not None:
        raise Conflict("Its rater has replaced this feedback by a newer one. Review that one.")
    if edited is not None and record.correction is None:
        raise Conflict("This feedback holds no correction that could be edited.")
    if (record.review, record.edited) == (decision, edited):
        return record, False
    record = replace(record, review=decision, edited=edited, reviewed_at=now, reviewed_by=reviewer)
    record = replace(record, review_checksum=review_checksum(record))
    changed = {name: getattr(record, name) for name in (*_REVIEW, "review_checksum")}
    connection.execute(update(feedback).where(this).values(changed))
    return record, True


def _queue(connection: Connection, limit: int, after: str | None) -> builtins.list[Queued]:
    newest = select(func.max(snapshots.c.id)).where(snapshots.c.source == "feedback").scalar_subquery()
    aside = select(snapshot_rows.c.feedback_id, snapshot_rows.c.reason).where(
        snapshot_rows.c.snapshot_id == newest, snapshot_rows.c.split == "quarantined", snapshot_rows.c.feedback_id.is_not(None)
    )
    ids = aside.with_only_columns(snapshot_rows.c.feedback_id)
    waiting = and_(feedback.c.review == "pending", feedback.c.superseded_at.is_(None))
    flagged = and_(waiting, feedback.c.id.in_(ids))
    rest = and_(
        waiting, feedback.c.id.not_in(ids), or_(feedback.c.correction.is_not(None), feedback.c.rater.startswith("import:"))
    )
    in_flagged = after is None or connection.execute(aside.where(snapshot_rows.c.feedback_id == after)).first() is not None
    found: builtins.list[Exported] = []
    for condition, begin in ((flagged, after or ""), (rest, "")) if in_flagged else ((rest, after or ""),):
        if len(found) < limit:
            found += _answered(connection, and_(condition, feedback.c.id > begin), limit - len(found))
    shown = [record.id for record, _, _ in found]
    rows = connection.execute(aside.where(snapshot_rows.c.feedback_id.in_(shown)).order_by(snapshot_rows.c.position.desc()))
    reasons = {row.feedback_id: row.reason for row in rows}
    return [(*item, reasons.get(item[0].id)) for item in found]


def _page(connection: Connection, after: str, batch: int) -> builtins.list[Exported]:
    return _answered(connection, and_(feedback.c.superseded_at.is_(None), feedback.c.id > after), batch)


def _answered(connection: Connection, condition: ColumnElement[bool], limit: int) -> builtins.list[Exported]:
    """Feedback by id, each with its prediction and the one it was preferred over."""
    said = select(feedback).where(condition).order_by(feedback.c.id).limit(limit)
    records = [_verified(row._mapping) for row in connection.execute(said)]
    ids = {record.prediction_id for record in records} | {record.preferred_over for record in records if record.preferred_over}
    rows = connection.execute(select(predictions).where(predictions.c.id.in_(ids)))
    answers = {row.id: make(PredictionRecord, row._mapping) for row in rows}
    return [
        (record, answers[record.prediction_id], answers[record.preferred_over] if record.preferred_over else None)
        for record in records
    ]


def _verified(row: RowMapping) -> FeedbackRecord:
    record = make(FeedbackRecord, row)
    reviewed = "" if not record.review_checksum and record.review == "pending" else review_checksum(record)
    if checksum(record) != record.checksum or reviewed != record.review_checksum:
        _log.error("a feedback row does not match its checksum", extra={"data": {"feedback_id": record.id}})
        raise StorageUnavailable(
            f"The stored feedback {record.id} is damaged and was not used. An admin should restore the last good backup."
        )
    return record
