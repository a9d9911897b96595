"""Rows for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from app.core.ids import uuid7
from app.core.records import FeedbackRecord, PredictionRecord, UserRecord
from app.core.types import Role
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.users import Users


def user(name: str, role: Role = "user") -> UserRecord:
    return UserRecord(uuid7(), name, role, "no hash", datetime.now(UTC))


def adding(*users: UserRecord) -> Callable[[Database], Coroutine[Any, Any, None]]:
    async def work(database: Database) -> None:
        for record in users:
            await Users(database).create(record)

    return work


def prediction(owner: UserRecord, question: str, answer: str) -> PredictionRecord:
    return PredictionRecord(
        id=uuid7(),
        user_id=owner.id,
        created_at=datetime.now(UTC),
        provider="echo",
        model="echo",
        version="v1",
        input={"messages": [{"role": "user", "content": question}], "sampling": {}},
        output=answer,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        queue_ms=0,
        first_token_ms=1,
        total_ms=1,
    )


def rated(owner: UserRecord, about: PredictionRecord, **feedback: Any) -> Callable[[Database], Coroutine[Any, Any, None]]:
    async def work(database: Database) -> None:
        await Predictions(database).add(about)
        record = FeedbackRecord(uuid7(), about.id, owner.id, datetime.now(UTC), user_id=owner.id, **feedback)
        await Feedback(database).store(record)

    return work
