"""Answered calls, as they were asked and answered. Written once, never changed; they go with their owner or conversation, or
when their owner says so. Sums over them (`Predictions.spent`, `Predictions.usage`) go by the time that ids carry."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, RowMapping, and_, case, delete, func, literal, select, type_coerce
from sqlalchemy.exc import IntegrityError

from app.core.errors import Conflict
from app.core.ids import first_uuid7
from app.core.records import PredictionRecord, UsageGroup, UsageRecord
from app.db.database import Database
from app.db.erased import note_costs
from app.db.rows import record_of, records_of, values_of
from app.db.schema import PRICED, erased_costs, predictions
from app.db.turns import drop_summary, turns_of

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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

    async def of_conversation(
        self, conversation_id: str, *, user_id: str, limit: int = 100, after: str | None = None, oldest: bool = False
    ) -> builtins.list[PredictionRecord]:
        """The newest (``oldest``: the oldest) ``limit`` whole answers of a user's conversation, oldest first.

        ``after``: of those behind this id.
        """
        row = predictions.c
        order = (row.id,) if oldest else (row.created_at.desc(), row.id.desc())
        query = select(predictions).where(turns_of(conversation_id, user_id, after)).order_by(*order).limit(limit)
        found = await self._database.read(lambda connection: records_of(PredictionRecord, connection.execute(query)))
        return found if oldest else found[::-1]

    async def delete(self, prediction_id: str, *, user_id: str) -> bool:
        """Removes a user's prediction with the feedback on it, and a summary that covers it. Returns whether there was one."""
        mine = and_(predictions.c.id == prediction_id, predictions.c.user_id == user_id)

        def work(connection: Connection) -> bool:
            note_costs(connection, mine)
            drop_summary(connection, prediction_id, user_id)
            return connection.execute(delete(predictions).where(mine)).rowcount > 0

        return await self._database.write(work)

    async def spent(
        self,
        *,
        since_ms: int,
        until_ms: int,
        slice_bits: int,
        user_id: str | None = None,
        key_id: str | None = None,
        without: Collection[str] = (),
    ) -> builtins.list[tuple[int, int]]:
        """What was spent from ``since_ms`` to before ``until_ms`` (milliseconds since the epoch), in slices, oldest first.

        Args:
            since_ms, until_ms: compared with the time in the ids.
            slice_bits: a slice is the calls whose milliseconds are equal without that many low bits; a multiple of 4, from 16.
            user_id, key_id: only this user's, or only those made with this key.
            without: ids to leave out.

        Returns:
            ``(slice, nano-dollars)``: milliseconds ``>> slice_bits``. Read from an index that holds what has a price, alone,
            and from what deleted predictions have cost.
        """
        # The first 8 hex digits of an id are the upper 32 of 48 bits of milliseconds.
        digits = 8 - (slice_bits - 16) // 4

        def sum_up(connection: Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for table in (predictions, erased_costs):
                row = table.c
                prefix = func.substr(row.id, 1, digits)
                query = select(prefix, func.sum(row.cost_nanousd)).group_by(prefix)
                query = query.where(row.id >= first_uuid7(since_ms), row.id < first_uuid7(until_ms))
                if without:
                    query = query.where(row.id.not_in(without))
                for wanted, column in ((user_id, row.user_id), (key_id, row.key_id)):
                    query = query if wanted is None else query.where(column == wanted)
                for key, cost in connection.execute(query.where(PRICED) if table is predictions else query):
                    found[key] = found.get(key, 0) + int(cost)
            return found

        slices = await self._database.read(sum_up)
        return [(int(key, 16), slices[key]) for key in sorted(slices)]

    async def usage(
        self, *, since: datetime, until: datetime, group: UsageGroup, user_id: str | None = None, limit: int = 1000
    ) -> builtins.list[UsageRecord]:
        """Calls, tokens and costs from ``since`` to before ``until``, by ``group``: the ``limit`` groups of most requests.

        ``user_id``: only that user's. ``name`` of a group: ``provider/model``, a key's id (None: no key), a user's id, or a
        day (UTC) as ``2026-11-23``.
        """
        name = _GROUPS[group]
        row = predictions.c
        query = (
            select(
                name.label("name"),
                func.count().label("requests"),
                func.sum(case((row.cached, 1), else_=0)).label("cached"),
                func.sum(case((row.status == "error", 1), else_=0)).label("errors"),
                func.sum(row.prompt_tokens).label("prompt_tokens"),
                func.sum(row.completion_tokens).label("completion_tokens"),
                func.coalesce(func.sum(row.cost_nanousd), 0).label("cost_nanousd"),
            )
            .where(row.id >= first_uuid7(_milliseconds(since)), row.id < first_uuid7(_milliseconds(until)))
            .group_by("name")
            .order_by(func.count().desc(), "name")
            .limit(limit)
        )
        if user_id is not None:
            query = query.where(row.user_id == user_id)
        found = await self._database.read(lambda connection: connection.execute(query).all())
        return [_usage(each._mapping, group) for each in found]


_GROUPS: Mapping[UsageGroup, ColumnElement[Any]] = {
    "model": predictions.c.provider + literal("/") + predictions.c.model,
    "key": predictions.c.key_id,
    "user": predictions.c.user_id,
    "day": type_coerce(predictions.c.created_at, BigInteger) // literal(_DAY_US, BigInteger),
}


def _milliseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


def _usage(row: RowMapping, group: UsageGroup) -> UsageRecord:
    name = row["name"]
    if group == "day":
        name = (_EPOCH + timedelta(days=int(name))).date().isoformat()
    counts = {each: int(row[each]) for each in row if each != "name"}
    return UsageRecord(name=name, **counts)
