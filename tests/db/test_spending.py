"""Sums over predictions, by time and by whose they are; a prediction that its owner deletes; and how the indexes are used."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text

from app.core.ids import uuid7
from app.core.records import PredictionRecord, UsageRecord
from app.db.conversations import Conversations
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.users import Users
from tests.db import make

START = datetime(2026, 3, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
HOUR_MS = 3_600_000


async def called(database: Database, user_id: str, after_ms: int, cost: int | None, **changes: Any) -> PredictionRecord:
    """A prediction that was called so many milliseconds after `START`."""
    at = START + timedelta(milliseconds=after_ms)
    return await make.stored_prediction(
        database, user_id, id=uuid7(now_ms=START_MS + after_ms), created_at=at, cost_nanousd=cost, **changes
    )


async def test_what_was_spent_is_summed_in_slices_of_a_window(database: Database) -> None:
    ana, bea = await make.stored_user(database), await make.stored_user(database)
    repository = Predictions(database)
    await called(database, ana.id, -1, 1_000_000)
    first = await called(database, ana.id, 0, 1, key_id="k1")
    await called(database, ana.id, 10, None)
    await called(database, ana.id, 20, 0)
    await called(database, bea.id, HOUR_MS - 1, 10**15)
    await called(database, ana.id, HOUR_MS - 1, 40, key_id="k2")
    await called(database, ana.id, HOUR_MS, 5_000)
    spent = partial(repository.spent, since_ms=START_MS, until_ms=START_MS + HOUR_MS)
    early, late = START_MS >> 16, (START_MS + HOUR_MS - 1) >> 16
    assert await spent(slice_bits=16) == [(early, 1), (late, 10**15 + 40)]
    assert await spent(slice_bits=16, user_id=ana.id) == [(early, 1), (late, 40)]
    assert await spent(slice_bits=16, key_id="k1") == [(early, 1)]
    assert await spent(slice_bits=16, user_id=ana.id, without=[first.id]) == [(late, 40)]
    for bits in (20, 24):
        slices = await spent(slice_bits=bits, user_id=ana.id)
        assert {key for key, _ in slices} <= {START_MS >> bits, (START_MS + HOUR_MS) >> bits}
        assert sum(cost for _, cost in slices) == 41
    assert await spent(slice_bits=16, key_id="none") == []


@pytest.mark.parametrize(
    ("filters", "index"),
    [({}, "total"), ({"user_id": "u"}, "user"), ({"key_id": "k"}, "key"), ({"user_id": "u", "without": ["a", "b"]}, "user")],
)
async def test_what_was_spent_is_read_from_an_index_alone(
    database: Database, filters: dict[str, Any], index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read = database.read

    async def recorded(fn: object) -> object:
        def explained(connection: Connection) -> list[object]:
            if connection.dialect.name == "sqlite":
                prefix = "EXPLAIN QUERY PLAN "
            else:
                prefix = "EXPLAIN "
                connection.execute(text("SET LOCAL enable_seqscan = off"))
            plain = connection.execute

            class Explaining:
                def execute(self, query: Any) -> object:
                    compiled = query.compile(connection.engine, compile_kwargs={"literal_binds": True})
                    asked.extend(str(row[-1]) for row in plain(text(prefix + str(compiled).replace(":", "\\:"))))
                    return plain(query)

            return fn(Explaining())  # type: ignore[operator, no-any-return]

        return await read(explained)

    monkeypatch.setattr(database, "read", recorded)
    assert await Predictions(database).spent(since_ms=1, until_ms=2, slice_bits=20, **filters) == []
    plan = " ".join(asked)
    assert f"ix_predictions_spent_{index}" in plan
    if "sqlite" in type(database).__name__.lower():
        assert "COVERING INDEX" in plan


async def test_usage_by_model_key_day_and_user(database: Database) -> None:
    ana, bea = await make.stored_user(database), await make.stored_user(database)
    day = 24 * HOUR_MS
    await called(database, ana.id, 0, 7, provider="openai", model="m", key_id="k1", prompt_tokens=10, completion_tokens=1)
    await called(database, ana.id, day - 1, None, provider="echo", model="echo", cached=True, prompt_tokens=2)
    await called(database, ana.id, day, 5, provider="openai", model="m", status="error", error="x: y")
    await called(database, bea.id, 2 * day, 10**16, provider="openai", model="m")
    await called(database, bea.id, 3 * day, 1)
    repository = Predictions(database)
    usage = partial(repository.usage, since=START, until=START + timedelta(days=3))
    assert await usage(group="model", user_id=ana.id) == [
        UsageRecord("openai/m", 2, 0, 1, 17, 4, 12),
        UsageRecord("echo/echo", 1, 1, 0, 2, 3, 0),
    ]
    by_key = await usage(group="key", user_id=ana.id)
    assert [(each.name, each.requests, each.cost_nanousd) for each in by_key] == [(None, 2, 5), ("k1", 1, 7)]
    by_day = await usage(group="day")
    assert {(each.name, each.requests) for each in by_day} == {("2026-03-01", 2), ("2026-03-02", 1), ("2026-03-03", 1)}
    by_user = await usage(group="user")
    assert [(each.name, each.requests, each.cost_nanousd) for each in by_user] == [(ana.id, 3, 12), (bea.id, 1, 10**16)]
    assert len(await usage(group="day", limit=2)) == 2
    assert await repository.usage(since=START, until=START, group="model") == []


async def test_an_owner_deletes_a_prediction_with_its_feedback(database: Database) -> None:
    owner, other = await make.stored_user(database), await make.stored_user(database)
    said, kept = await make.stored_prediction(database, owner.id), await make.stored_prediction(database, owner.id)
    repository, feedback = Predictions(database), Feedback(database)
    rated, _ = await feedback.store(make.feedback(said.id, owner.id))
    preferred, _ = await feedback.store(make.feedback(kept.id, owner.id, preferred_over=said.id))
    assert not await repository.delete(said.id, user_id=other.id)
    assert await repository.get(said.id) == said
    assert await repository.delete(said.id, user_id=owner.id)
    assert await repository.get(said.id) is None
    assert await feedback.get(rated.id) is None and await feedback.get(preferred.id) is None
    assert await repository.get(kept.id) == kept
    assert not await repository.delete(said.id, user_id=owner.id)


@pytest.mark.parametrize("how", ["prediction", "conversation", "user"])
async def test_who_deletes_an_answer_does_not_get_its_price_back(database: Database, how: str) -> None:
    ana, bea = await make.stored_user(database), await make.stored_user(database)
    now_ms = int(time.time() * 1000)
    conversations, repository = Conversations(database), Predictions(database)
    for owner in (ana, bea):
        thread = make.conversation(owner.id)
        await conversations.create(thread)
        said = await make.stored_prediction(
            database, owner.id, id=uuid7(now_ms=now_ms), cost_nanousd=5, key_id="k", conversation_id=thread.id
        )
        await make.stored_prediction(database, owner.id, id=uuid7(now_ms=now_ms), conversation_id=thread.id)
        if owner is ana:
            mine, prediction = thread, said
    spent = partial(repository.spent, since_ms=now_ms - 1, until_ms=now_ms + 1, slice_bits=24)
    if how == "prediction":
        assert await repository.delete(prediction.id, user_id=ana.id)
        assert not await repository.delete(prediction.id, user_id=ana.id)
    elif how == "conversation":
        assert not await conversations.delete(mine.id, user_id=bea.id)
        assert await conversations.delete(mine.id, user_id=ana.id)
    else:
        await repository.delete(prediction.id, user_id=ana.id)
        await called(database, ana.id, 0, 7)
        assert await Users(database).delete(ana.id)
    assert await spent() == [(now_ms >> 24, 10)]
    kept = [] if how == "user" else [(now_ms >> 24, 5)]
    assert await spent(user_id=ana.id) == kept
    assert await spent(user_id=bea.id) == [(now_ms >> 24, 5)]
    assert await spent(key_id="k") == [(now_ms >> 24, 10 if how != "user" else 5)]
    assert await spent(without=[prediction.id]) == [(now_ms >> 24, 5)]


async def test_what_deleted_answers_have_cost_is_forgotten_after_a_month(database: Database) -> None:
    ana = await make.stored_user(database)
    repository = Predictions(database)
    old = await called(database, ana.id, 0, 7)
    await repository.delete(old.id, user_id=ana.id)
    assert await repository.spent(since_ms=START_MS, until_ms=START_MS + 1, slice_bits=24) == []


async def test_prices_and_thinking_come_back(database: Database) -> None:
    owner = await make.stored_user(database)
    told = await make.stored_prediction(
        database, owner.id, cached_tokens=3, cost_nanousd=2**62, fallback="upstream-timeout", reasoning="Hm.", cached=True
    )
    assert await Predictions(database).get(told.id) == told
    assert dataclasses.replace(told, cost_nanousd=None) != told
