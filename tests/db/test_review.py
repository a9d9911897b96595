"""The review of feedback and its queue, the import's way in, and the history of splits, on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from app.core.errors import Conflict, NotFound, StorageUnavailable
from app.core.ids import uuid7
from app.core.records import FeedbackRecord, SnapshotRecord, SnapshotRowRecord, SplitName
from app.db.database import Database
from app.db.feedback import Feedback, review_checksum
from app.db.schema import feedback
from app.db.snapshots import Snapshots
from tests.db import make
from tests.db.make import LATER, NOW


async def corrected(database: Database, **changes: Any) -> FeedbackRecord:
    """A stored correction of somebody new."""
    user = await make.stored_user(database)
    said = await make.stored_prediction(database, user.id)
    given = replace(make.feedback(said.id, user.id, rating=None, correction="Es la una."), **changes)
    return (await Feedback(database).store(given))[0]


async def snapshot_of(database: Database, *rows: tuple[str | None, SplitName, str]) -> str:
    """A stored snapshot of rows (feedback, split, group); its id."""
    record = SnapshotRecord(make.new_id(), NOW, None, "d" * 64, "feedback", {}, {})
    found = [
        SnapshotRowRecord(
            record.id, position, split, "sft", group, 1.0, feedback_id=said, reason="burst: 42 ratings within 60 s"
        )
        for position, (said, split, group) in enumerate(rows)
    ]
    await Snapshots(database).add(record, found)
    return record.id


async def test_a_decision_is_kept_with_its_checksum(database: Database) -> None:
    repository, given = Feedback(database), await corrected(database)
    record, changed = await repository.review(given.id, "approved", edited="Es la una.", reviewer="admin", now=LATER)
    assert changed
    expected = replace(given, review="approved", edited="Es la una.", reviewed_at=LATER, reviewed_by="admin")
    assert record == replace(expected, review_checksum=review_checksum(expected))
    assert await repository.get(given.id) == record
    again, changed = await repository.review(given.id, "approved", edited="Es la una.", reviewer="other", now=NOW)
    assert (again, changed) == (record, False)
    back, _ = await repository.review(given.id, "pending", reviewer="admin", now=LATER)
    assert (back.review, back.edited) == ("pending", None)
    assert await repository.get(given.id) == back


async def test_what_cannot_be_reviewed(database: Database) -> None:
    repository, given = Feedback(database), await corrected(database)
    with pytest.raises(NotFound):
        await repository.review(uuid7(), "approved", reviewer=None, now=NOW)
    newer = make.feedback(given.prediction_id, given.rater, rating="up", created_at=LATER)
    await repository.store(newer)
    with pytest.raises(Conflict, match="newer"):
        await repository.review(given.id, "approved", reviewer=None, now=NOW)
    with pytest.raises(Conflict, match="no correction"):
        await repository.review(newer.id, "approved", edited="x", reviewer=None, now=NOW)


async def test_a_decision_that_was_changed_on_the_disk_is_found(database: Database) -> None:
    repository, given = Feedback(database), await corrected(database)
    for changes in ({"review": "approved"}, {"edited": "poison"}, {"reviewed_by": "x"}):
        await repository.review(given.id, "rejected", reviewer="admin", now=NOW)
        await database.write(lambda connection, changes=changes: connection.execute(update(feedback).values(changes)))  # type: ignore[misc]
        with pytest.raises(StorageUnavailable, match=given.id):
            await repository.get(given.id)
        reset = {"review": "pending", "edited": None, "reviewed_at": None, "reviewed_by": None, "review_checksum": ""}
        await database.write(lambda connection, reset=reset: connection.execute(update(feedback).values(reset)))  # type: ignore[misc]
        assert await repository.get(given.id) == given


async def test_decisions_at_once_leave_one(database: Database) -> None:
    repository, given = Feedback(database), await corrected(database)
    words = [f"wording {number}" for number in range(10)]
    await asyncio.gather(*(repository.review(given.id, "approved", edited=each, reviewer=None, now=NOW) for each in words))
    record = await repository.get(given.id)
    assert record is not None
    assert record.edited in words


async def test_the_queue_begins_with_what_was_set_aside(database: Database) -> None:
    repository = Feedback(database)
    first, second, third = [await corrected(database) for _ in range(3)]
    rating = await corrected(database, correction=None, rating="up")
    imported = await corrected(database, correction=None, rating="down", rater="import:trl:x", user_id=None)
    done = await corrected(database)
    await repository.review(done.id, "approved", reviewer=None, now=NOW)
    await snapshot_of(database, (first.id, "quarantined", "g"))
    await snapshot_of(database, (third.id, "quarantined", "g"), (rating.id, "quarantined", "h"), (None, "quarantined", "i"))
    expected = [third.id, rating.id, first.id, second.id, imported.id]
    for limit in (1, 2, 3, 10):
        seen: list[str] = []
        while page := await repository.queue(limit=limit, after=seen[-1] if seen else None):
            assert len(page) <= limit
            seen += [item[0].id for item in page]
        assert seen == expected
    reasons = {item[0].id: item[3] for item in await repository.queue()}
    assert reasons[third.id] == "burst: 42 ratings within 60 s"
    assert reasons[first.id] is None
    await repository.review(third.id, "approved", reviewer=None, now=NOW)
    assert [item[0].id for item in await repository.queue()] == expected[1:]


async def test_an_import_is_all_new_or_known(database: Database) -> None:
    repository, owner = Feedback(database), await make.stored_user(database)

    def bundle(key: str) -> tuple[tuple[object, ...], FeedbackRecord]:
        said, worse = make.prediction(owner.id), make.prediction(owner.id)
        given = make.feedback(said.id, "import:trl:x", user_id=None, preferred_over=worse.id, idempotency_key=key)
        return (said, worse), replace(given, review="approved", reviewed_by=owner.id, reviewed_at=NOW)

    assert await repository.add_imported([bundle("a"), bundle("b"), bundle("a")]) == 2  # type: ignore[list-item]
    assert await repository.add_imported([bundle("a"), bundle("c")]) == 1  # type: ignore[list-item]
    found = [item async for item in repository.export()]
    assert {said.idempotency_key for said, _, _ in found} == {"a", "b", "c"}
    assert {said.review for said, _, _ in found} == {"approved"}
    with pytest.raises(Conflict):
        await repository.add_imported([((make.prediction(uuid7()),), bundle("d")[1])])


async def test_the_history_of_splits(database: Database) -> None:
    assert await Snapshots(database).history() == (frozenset(), frozenset(), frozenset())
    await snapshot_of(database, ("f1", "heldout", "a"), ("f2", "train", "b"), ("f3", "quarantined", "c"), ("f4", "folded", "a"))
    await snapshot_of(database, (None, "heldout", "d"), ("f2", "train", "b"))
    assert await Snapshots(database).history() == (frozenset("ad"), frozenset("b"), frozenset({"f1"}))
