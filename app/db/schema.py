"""The tables, once, for SQLite and PostgreSQL: names, types, keys and indexes. No queries; its history is in ``migrations``.

Both databases hold the same bytes: text as Unicode text, times as microseconds since the epoch (UTC) in a 64-bit integer, and
structured values as JSON text that we write ourselves, so that no database's own date or JSON type gets to change them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Timestamp(TypeDecorator[datetime]):
    """A timezone-aware datetime, kept to the microsecond and read back in UTC. Naive ones are refused: they name no instant."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Json(TypeDecorator[Any]):
    """A JSON value as text. Mappings come back as dicts and tuples as lists; NaN and infinity are refused."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else to_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def to_json(value: Any) -> str:
    """``value`` as compact JSON. Raises ValueError for NaN and infinity, TypeError for what JSON has no word for."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    if not text.isascii() and _LONE_SURROGATE.search(text):
        # Half a surrogate pair has no UTF-8 form; escaped, it survives both databases.
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_plain)
    return text


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("username", Text, nullable=False),
    Column("username_key", Text, nullable=False, unique=True),  # NFKC + casefold: "Ana" and "ANA" are one person
    Column("role", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("disabled_at", Timestamp),
    Column("last_login_at", Timestamp),
)

invites = Table(
    "invites",
    metadata,
    Column("id", Text, primary_key=True),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("created_by", Text, ForeignKey("users.id", ondelete="SET NULL"), index=True),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("used_at", Timestamp),
    Column("used_by", Text, ForeignKey("users.id", ondelete="SET NULL"), index=True),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Timestamp, nullable=False),
    Column("last_seen_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("refresh_hash", Text, nullable=False),
    Column("previous_refresh_hash", Text),
    Column("rotated_at", Timestamp),
    Column("revoked_at", Timestamp),
    Column("user_agent", Text, nullable=False),
    Column("address", Text, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("key_hash", Text, nullable=False, unique=True),
    Column("scopes", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp),
    Column("last_used_at", Timestamp),
    Column("revoked_at", Timestamp),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("title", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("summary", Text),
    Column("summary_until", Text),
    Index(None, "user_id", "id"),
)

predictions = Table(
    "predictions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("input", Json, nullable=False),
    Column("output", Text, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("queue_ms", Double, nullable=False),
    Column("first_token_ms", Double),
    Column("total_ms", Double, nullable=False),
    Column("status", Text, nullable=False),
    Column("error", Text),
    Column("cached", Boolean, nullable=False),
    Column("key_id", Text),
    Column("conversation_id", Text, ForeignKey("conversations.id", ondelete="CASCADE")),
    Column("request_id", Text, nullable=False),
    Column("alias", Text),
    Column("tool_calls", Json, nullable=False),
    Column("cached_tokens", Integer, nullable=False, server_default="0"),
    Column("cost_nanousd", BigInteger),
    Column("fallback", Text),
    Column("reasoning", Text, nullable=False, server_default=text("''")),
    Index(None, "user_id", "id"),
    Index(None, "conversation_id", "id"),
)
PRICED = text("cost_nanousd > 0")
"""Which predictions the next three indexes hold: a sum over money reads nothing else, and what costs nothing is not in them."""
for _name, *_columns in (("total", "id"), ("user", "user_id", "id"), ("key", "key_id", "id")):
    Index(
        f"ix_predictions_spent_{_name}",
        *(predictions.c[_column] for _column in _columns),
        predictions.c.cost_nanousd,
        sqlite_where=PRICED,
        postgresql_where=PRICED,
    )

erased_costs = Table(
    "erased_costs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text),
    Column("key_id", Text),
    Column("cost_nanousd", BigInteger, nullable=False),
    Index(None, "user_id", "id"),
    Index(None, "key_id", "id"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Text, primary_key=True),
    Column("prediction_id", Text, ForeignKey("predictions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("rater", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE")),
    Column("rating", Text),
    Column("correction", Text),
    # A preference over an answer that is gone says nothing, and SET NULL would break the checksum: it goes with the answer.
    Column("preferred_over", Text, ForeignKey("predictions.id", ondelete="CASCADE"), index=True),
    Column("comment", Text),
    Column("tags", Json, nullable=False),
    Column("review", Text, nullable=False),
    Column("superseded_at", Timestamp),
    Column("idempotency_key", Text),
    Column("checksum", Text, nullable=False),
    Column("edited", Text),
    Column("reviewed_at", Timestamp),
    Column("reviewed_by", Text),
    Column("review_checksum", Text, nullable=False, server_default=text("''")),
    UniqueConstraint("rater", "idempotency_key"),
    Index(None, "user_id", "id"),
    Index(None, "review", "id"),
)
Index(
    "uq_feedback_current",
    feedback.c.rater,
    feedback.c.prediction_id,
    unique=True,
    sqlite_where=feedback.c.superseded_at.is_(None),
    postgresql_where=feedback.c.superseded_at.is_(None),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("base_hash", Text),
    Column("adapter_hash", Text),
    Column("template_hash", Text),
    Column("created_at", Timestamp, nullable=False),
    Column("details", Json, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("configured", Text, nullable=False),
    Column("moved_at", Timestamp, nullable=False),
    Column("moved_by", Text),
    Column("adapter", Text),
    Column("previous", Json),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Timestamp, nullable=False),
    Column("actor", Text),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("details", Json, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("checksum", Text, nullable=False),
)

# What was learned from whom. Rows name people and feedback without foreign keys: the lineage of what was deleted must be known
# until what was trained on it is gone too.
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", Text),
    Column("digest", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("config", Json, nullable=False),
    Column("report", Json, nullable=False),
    Column("erased_at", Timestamp),
)

snapshot_rows = Table(
    "snapshot_rows",
    metadata,
    Column("snapshot_id", Text, ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("split", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("group", Text, nullable=False),
    Column("weight", Double, nullable=False),
    Column("feedback_id", Text, index=True),
    Column("prediction_id", Text, index=True),
    Column("user_id", Text, index=True),
    Column("rater", Text, index=True),
    Column("reason", Text),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", Text),
    Column("state", Text, nullable=False, index=True),
    Column("phase", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("promote", Text, nullable=False),
    Column("config", Json, nullable=False),
    Column("base", Json, nullable=False),
    Column("progress", Json, nullable=False),
    Column("snapshot_id", Text, ForeignKey("snapshots.id"), index=True),
    Column("version", Text, index=True),
    Column("adapter_hash", Text),
    Column("gate", Json),
    Column("error", Text),
    Column("started_at", Timestamp),
    Column("ended_at", Timestamp),
    Column("retired_at", Timestamp),
    Column("retired_reason", Text),
)

gate_attempts = Table(
    "gate_attempts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Timestamp, nullable=False),
    Column("run_id", Text, nullable=False, index=True),
    Column("groups", Json, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("p_value", Double, nullable=False),
    Column("passed", Boolean, nullable=False),
)

canaries = Table(
    "canaries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("alias", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("control_version", Text, nullable=False),
    Column("share", Double, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("started_at", Timestamp, nullable=False),
    Column("started_by", Text),
    Column("run_id", Text),
    Column("ended_at", Timestamp),
    Column("reason", Text),
    Column("counts", Json, nullable=False),
)
Index("ix_predictions_version_id", predictions.c.version, predictions.c.id)

documents = Table(
    "documents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("collection", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("progress", Double, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("space", Text),
    Column("error", Text),
    Column("claimed_until", Timestamp),
    Column("notes", Json, nullable=False),
    Index(None, "user_id", "id"),
)

document_pieces = Table(  # the file as it was uploaded, so that it can be indexed again, backed up and erased with the rest
    "document_pieces",
    metadata,
    Column("document_id", Text, ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

chunks = Table(
    "chunks",
    metadata,
    # A number that is never given again: SQLite's full-text index (chunk_words, see the migration) knows a row by it.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("document_id", Text, ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("collection", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("scope", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("place", Json, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("space", Text),
    Column("vector", LargeBinary),
    Index(None, "document_id", "position"),
    Index(None, "user_id", "collection", "number"),
    Index("ix_chunks_user_id_content_hash", "user_id", "content_hash"),
    sqlite_autoincrement=True,
)

facts = Table(
    "facts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("text", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("prediction_id", Text),
    Column("recalled_at", Timestamp),
    Column("space", Text),
    Column("vector", LargeBinary),
    Index(None, "user_id", "id"),
)

partitions = Table(  # changes with every change of what is searched under it: an index that has seen another number is stale
    "partitions",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("collection", Text, primary_key=True),
    Column("generation", BigInteger, nullable=False),
)
