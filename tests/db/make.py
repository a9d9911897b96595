"""Records for tests: whole, valid, and different each time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from app.core.ids import uuid7
from app.core.records import (
    AliasRecord,
    AuditRecord,
    ConversationRecord,
    FeedbackRecord,
    InviteRecord,
    KeyRecord,
    PredictionRecord,
    SessionRecord,
    UserRecord,
    VersionRecord,
)
from app.db.database import Database
from app.db.predictions import Predictions
from app.db.users import Users

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(days=30)
_milliseconds = itertools.count(1_763_899_200_000)


def new_id() -> str:
    """An id that sorts after all earlier ones: two real ones of the same millisecond sort by chance."""
    return uuid7(now_ms=next(_milliseconds))


def user(name: str | None = None, **changes: Any) -> UserRecord:
    identifier = new_id()
    return replace(UserRecord(identifier, name or f"user-{identifier}", "user", "$argon2id$…", NOW), **changes)


def invite(token_hash: str | None = None, **changes: Any) -> InviteRecord:
    return replace(InviteRecord(new_id(), token_hash or new_id(), "user", None, NOW, LATER), **changes)


def session(user_id: str, **changes: Any) -> SessionRecord:
    return replace(SessionRecord(new_id(), user_id, NOW, NOW, LATER, "hash-0"), **changes)


def key(user_id: str, **changes: Any) -> KeyRecord:
    return replace(KeyRecord(new_id(), user_id, "laptop", "apz_1234", new_id(), ("predict", "feedback"), NOW), **changes)


def conversation(user_id: str, **changes: Any) -> ConversationRecord:
    return replace(ConversationRecord(new_id(), user_id, "Hola", NOW, NOW), **changes)


def prediction(user_id: str, **changes: Any) -> PredictionRecord:
    asked = {"messages": [{"role": "user", "content": "¿Qué hora es?"}], "sampling": {"max_tokens": 5, "temperature": 0.25}}
    record = PredictionRecord(
        new_id(), user_id, NOW, "echo", "echo/echo", "0123456789abcdef", asked, "Las doce.", "stop", 7, 3, 0.125, 1.5, 20.75
    )
    return replace(record, **changes)


def feedback(prediction_id: str, rater: str, **changes: Any) -> FeedbackRecord:
    return replace(FeedbackRecord(new_id(), prediction_id, rater, NOW, user_id=rater, rating="up"), **changes)


def version(identifier: str, **changes: Any) -> VersionRecord:
    return replace(VersionRecord(identifier, "echo", "echo/echo", "b" * 64, None, None, NOW, {"quant": "Q8_0"}), **changes)


def alias(name: str, version_id: str, **changes: Any) -> AliasRecord:
    return replace(AliasRecord(name, "echo", "echo", "auto", version_id, "echo/echo", NOW), **changes)


def audit(**changes: Any) -> AuditRecord:
    return replace(
        AuditRecord(new_id(), NOW, "u1", "model.switch", "default", {"to": "echo/echo"}, "r1", "127.0.0.1"), **changes
    )


async def stored_user(database: Database, name: str | None = None, **changes: Any) -> UserRecord:
    """An account that is in the database."""
    record = user(name, **changes)
    await Users(database).create(record)
    return record


async def stored_prediction(database: Database, user_id: str, **changes: Any) -> PredictionRecord:
    """A prediction that is in the database."""
    record = prediction(user_id, **changes)
    await Predictions(database).add(record)
    return record
