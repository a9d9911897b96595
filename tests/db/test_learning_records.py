"""Predictions, feedback, conversations, versions, aliases and the audit log, on both databases."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from app.core.errors import Conflict, IdempotencyMismatch, NotFound, StorageUnavailable
from app.core.ids import uuid7
from app.core.records import FeedbackRecord
from app.db import feedback as feedback_module
from app.db.audit import Audit
from app.db.conversations import Conversations
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.schema import audit, feedback
from app.db.sqlite import store_feedback
from app.db.versions import Aliases, Versions
from tests.db import make
from tests.db.make import LATER, NOW


async def test_a_prediction_comes_back_as_it_was_stored(database: Database) -> None:
    predictions = Predictions(database)
    owner, other = await make.stored_user(database), await make.stored_user(database)
    plain = await make.stored_prediction(database, owner.id)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    full = await make.stored_prediction(
        database,
        owner.id,
        tool_calls=(call,),
        status="error",
        error="cut",
        cached=True,
        key_id="k",
        alias="default",
        request_id="r",
    )
    assert await predictions.get(plain.id) == plain
    assert await predictions.get(full.id, user_id=owner.id) == full
    assert await predictions.get(full.id, user_id=other.id) is None
    assert await predictions.get(uuid7()) is None


async def test_a_prediction_without_its_account_is_refused(database: Database) -> None:
    predictions = Predictions(database)
    owner = await make.stored_user(database)
    good = [make.prediction(owner.id) for _ in range(10)]
    bad = [make.prediction(uuid7()), make.prediction(owner.id, conversation_id=uuid7())]
    results = await asyncio.gather(*(predictions.add(each) for each in [*good[:5], *bad, *good[5:]]), return_exceptions=True)
    assert [isinstance(result, Conflict) for result in results] == [False] * 5 + [True] * 2 + [False] * 5
    for each in good:
        assert await predictions.get(each.id) == each


async def test_a_conversation_keeps_its_turns_in_order(database: Database) -> None:
    predictions, conversations = Predictions(database), Conversations(database)
    owner, other = await make.stored_user(database), await make.stored_user(database)
    thread = make.conversation(owner.id)
    await conversations.create(thread)
    turns = [
        await make.stored_prediction(database, owner.id, conversation_id=thread.id, created_at=NOW + timedelta(microseconds=n))
        for n in range(4)
    ]
    await make.stored_prediction(database, owner.id, conversation_id=thread.id, status="cancelled")
    assert await predictions.of_conversation(thread.id, user_id=owner.id) == turns
    assert await predictions.of_conversation(thread.id, user_id=owner.id, limit=2) == turns[2:]
    assert await predictions.of_conversation(thread.id, user_id=other.id) == []


async def test_conversations_belong_to_their_user(database: Database) -> None:
    conversations = Conversations(database)
    owner, other = await make.stored_user(database), await make.stored_user(database)
    one, two = make.conversation(owner.id), make.conversation(owner.id)
    await conversations.create(one)
    await conversations.create(two)
    await conversations.touch(one.id, now=LATER)
    assert await conversations.get(one.id, user_id=owner.id) == replace(one, updated_at=LATER)
    assert await conversations.get(one.id, user_id=other.id) is None
    assert [each.id for each in await conversations.list(owner.id, limit=1)] == [two.id]
    assert [each.id for each in await conversations.list(owner.id, after=two.id)] == [one.id]
    said = await make.stored_prediction(database, owner.id, conversation_id=one.id)
    await Feedback(database).store(make.feedback(said.id, owner.id))
    assert await conversations.delete(one.id, user_id=other.id) is False
    assert await conversations.delete(one.id, user_id=owner.id) is True
    assert await Predictions(database).get(said.id) is None
    assert await Feedback(database).list(current=False) == []


async def test_feedback_comes_back_with_its_checksum(database: Database) -> None:
    rater = await make.stored_user(database)
    said, worse = await make.stored_prediction(database, rater.id), await make.stored_prediction(database, rater.id)
    given = make.feedback(
        said.id,
        rater.id,
        correction="Es la una.",
        preferred_over=worse.id,
        comment="mal",
        tags=("hora", "es"),
        idempotency_key="k1",
    )
    stored, replayed = await store_feedback(database, given)
    assert replayed is False
    assert stored == replace(given, checksum=feedback_module.checksum(given))
    assert len(stored.checksum) == 64
    assert await Feedback(database).list() == [stored]
    assert await Feedback(database).get(stored.id) == stored
    assert await Feedback(database).get(uuid7()) is None


async def test_newer_feedback_supersedes_the_raters_own(database: Database) -> None:
    repository = Feedback(database)
    rater, other = await make.stored_user(database), await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    first, _ = await repository.store(make.feedback(said.id, rater.id))
    theirs, _ = await repository.store(make.feedback(said.id, other.id, rating="down"))
    second, _ = await repository.store(make.feedback(said.id, rater.id, rating="down", created_at=LATER))
    assert await repository.list() == [second, theirs]
    assert await repository.list(user_id=rater.id, current=False) == [second, replace(first, superseded_at=LATER)]
    assert await repository.list(limit=1) == [second]
    assert await repository.list(after=second.id) == [theirs]


async def test_an_idempotency_key_replays_the_first_record(database: Database) -> None:
    repository = Feedback(database)
    rater, other = await make.stored_user(database), await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    first, _ = await repository.store(make.feedback(said.id, rater.id, idempotency_key="k", tags=("a",)))
    again = await repository.store(make.feedback(said.id, rater.id, idempotency_key="k", tags=("a",), created_at=LATER))
    assert again == (first, True)
    with pytest.raises(IdempotencyMismatch):
        await repository.store(make.feedback(said.id, rater.id, idempotency_key="k", tags=("b",)))
    _, replayed = await repository.store(make.feedback(said.id, other.id, idempotency_key="k", rating="down"))
    assert replayed is False
    await repository.store(make.feedback(said.id, rater.id, rating="down", created_at=LATER))
    late, replayed = await repository.store(make.feedback(said.id, rater.id, idempotency_key="k", tags=("a",)))
    assert (late, replayed) == (replace(first, superseded_at=LATER), True)


async def test_the_same_key_many_times_at_once_stores_once(database: Database) -> None:
    repository = Feedback(database)
    rater = await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    results = await asyncio.gather(
        *(repository.store(make.feedback(said.id, rater.id, idempotency_key="k")) for _ in range(20))
    )
    assert len({record.id for record, _ in results}) == 1
    assert sum(not replayed for _, replayed in results) == 1


async def test_racing_feedback_leaves_one_current_row(database: Database) -> None:
    repository = Feedback(database)
    rater = await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    await asyncio.gather(*(repository.store(make.feedback(said.id, rater.id, comment=str(n))) for n in range(30)))
    assert len(await repository.list()) == 1
    assert len(await repository.list(current=False)) == 30


async def test_feedback_on_what_does_not_exist_is_not_found(database: Database) -> None:
    repository = Feedback(database)
    rater = await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    with pytest.raises(NotFound) as error:
        await repository.store(make.feedback(uuid7(), rater.id))
    assert error.value.field == "prediction_id"
    with pytest.raises(NotFound) as error:
        await repository.store(make.feedback(said.id, rater.id, preferred_over=uuid7()))
    assert error.value.field == "preferred_over"
    stored, _ = await repository.store(make.feedback(said.id, rater.id))
    with pytest.raises(Conflict):
        await repository.store(make.feedback(said.id, rater.id, id=stored.id))
    assert await repository.list() == [stored]


async def test_the_export_joins_current_feedback_with_its_predictions(database: Database) -> None:
    repository = Feedback(database)
    rater = await make.stored_user(database)
    said = [await make.stored_prediction(database, rater.id, output=f"answer {n}") for n in range(7)]
    stored: list[FeedbackRecord] = []
    for number, each in enumerate(said):
        await repository.store(make.feedback(each.id, rater.id, rating="down"))
        over = said[number - 1].id if number % 2 else None
        stored.append((await repository.store(make.feedback(each.id, rater.id, preferred_over=over)))[0])
    exported = [item async for item in repository.export(batch=3)]
    assert [item[0] for item in exported] == sorted(stored, key=lambda each: each.id)
    for record, prediction, worse in exported:
        assert prediction.id == record.prediction_id
        assert (worse.id if worse else None) == record.preferred_over


async def test_a_damaged_feedback_is_an_error_not_an_answer(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    repository = Feedback(database)
    rater = await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    stored, _ = await repository.store(make.feedback(said.id, rater.id, comment="bien", idempotency_key="k"))
    await database.write(lambda connection: connection.execute(update(feedback).values(comment="bieo")))
    for attempt in (
        repository.list(),
        repository.get(stored.id),
        repository.store(make.feedback(said.id, rater.id, idempotency_key="k")),
    ):
        with pytest.raises(StorageUnavailable, match=stored.id):
            await attempt
    with pytest.raises(StorageUnavailable, match="damaged"):
        _ = [item async for item in repository.export()]
    assert "does not match its checksum" in caplog.text
    assert {record.levelno for record in caplog.records if record.name == "app.db.feedback"} == {logging.ERROR}


async def test_versions_keep_their_first_date(database: Database) -> None:
    versions = Versions(database)
    await versions.put(make.version("v1"))
    await versions.put(make.version("v2", created_at=LATER))
    await versions.put(make.version("v1", created_at=LATER, details={"quant": "Q4_1"}))
    assert await versions.get("v1") == make.version("v1", details={"quant": "Q4_1"})
    assert [each.id for each in await versions.list()] == ["v2", "v1"]
    assert await versions.get("v3") is None


async def test_an_alias_remembers_where_it_pointed(database: Database) -> None:
    aliases = Aliases(database)
    assert await aliases.get("default") is None
    first = await aliases.move(make.alias("default", "v1", previous={"version": "forged"}))
    assert first.previous is None
    second = await aliases.move(make.alias("default", "v2", adapter="a1", moved_by="u1", moved_at=LATER))
    expected = {
        "provider": "echo",
        "model": "echo",
        "device": "auto",
        "adapter": None,
        "version": "v1",
        "configured": "echo/echo",
    }
    assert second.previous == expected
    assert await aliases.get("default") == second
    reloaded = await aliases.move(make.alias("default", "v2", adapter="a1"))
    assert reloaded.previous == expected
    other = await aliases.move(make.alias("canary", "v3"))
    assert await aliases.list() == [other, reloaded]


async def test_the_audit_log_is_read_newest_first_and_checked(database: Database) -> None:
    log = Audit(database)
    lines = [make.audit(actor=None), make.audit(), make.audit(details={})]
    for line in lines:
        await log.add(line)
    read = await log.list()
    assert [replace(line, checksum="") for line in read] == lines[::-1]
    assert await log.list(limit=1) == read[:1]
    assert await log.list(after=read[0].id) == read[1:]
    await database.write(
        lambda connection: connection.execute(update(audit).where(audit.c.id == lines[1].id).values(actor="u2"))
    )
    with pytest.raises(StorageUnavailable, match=lines[1].id):
        await log.list()


async def test_the_database_itself_refuses_a_second_current_row(database: Database) -> None:
    rater = await make.stored_user(database)
    said = await make.stored_prediction(database, rater.id)
    stored, _ = await Feedback(database).store(make.feedback(said.id, rater.id))
    twin = feedback.insert().from_select(
        [column.name for column in feedback.c],
        select(*(func.concat(column, "x") if column.name == "id" else column for column in feedback.c)).where(
            feedback.c.id == stored.id
        )
        if database.__class__.__name__ == "PostgresDatabase"
        else select(*(column + "x" if column.name == "id" else column for column in feedback.c)).where(
            feedback.c.id == stored.id
        ),
    )
    with pytest.raises(Exception, match=r"(?i)unique"):
        await database.write(lambda connection: connection.execute(twin))


@pytest.mark.parametrize("shift", [timedelta(0), timedelta(microseconds=1), timedelta(days=-20_000, microseconds=999_999)])
async def test_times_keep_their_microseconds(database: Database, shift: timedelta) -> None:
    when: datetime = NOW + shift
    stored = await make.stored_user(database, created_at=when)
    from app.db.users import Users

    found = await Users(database).get(stored.id)
    assert found is not None
    assert found.created_at == when
    assert found.created_at.utcoffset() == timedelta(0)
