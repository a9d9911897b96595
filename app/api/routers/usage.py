"""``/usage``: how many calls, tokens and dollars, by model, key, day or user. Sums over predictions; it keeps no book."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Self

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field

from app.api.bodies import StrictRoute
from app.api.deps import ReadPrincipal, ServicesDep
from app.core.errors import Forbidden, InvalidRequest
from app.core.ids import is_uuid7
from app.core.records import UsageGroup, UsageRecord
from app.core.types import Principal

router = APIRouter(prefix="/usage", route_class=StrictRoute, tags=["usage"])

_DEFAULT: Final = timedelta(days=30)
_LONGEST: Final = timedelta(days=366)
_ROWS: Final = 1000
_ALL: Final = "all"
_NANO: Final = 10**9


def _in_our_time(value: datetime) -> datetime:
    """Without a time zone it is UTC; far years are mistakes, and no arithmetic is to overflow on them."""
    if not 2000 <= value.year < 3000:
        raise ValueError("must be a time between 2000 and 2999")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


Time = Annotated[datetime, AfterValidator(_in_our_time)]


class Amounts(BaseModel):
    """Sums. ``errors``: calls that failed; ``cached``: answered from the cache, at no price. Without a known price costs 0."""

    requests: int
    cached: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float = Field(description="US dollars, to nine digits.")


class UsageRow(Amounts):
    """One group. ``name``: the model, the key's id (null: called without a key), the day (UTC), or the user's id."""

    name: str | None

    @classmethod
    def of(cls, record: UsageRecord) -> Self:
        return cls(name=record.name, **_amounts([record]).model_dump())


class UsageOut(BaseModel):
    """Those with most calls first, at most a thousand; ``total`` is over all."""

    since: datetime = Field(serialization_alias="from")
    until: datetime
    group: UsageGroup
    rows: list[UsageRow]
    total: Amounts


@router.get("", summary="Calls, tokens and costs")
async def show_usage(
    services: ServicesDep,
    principal: ReadPrincipal,
    since: Annotated[Time | None, Query(description="From then on; 30 days before `until` unless given.")] = None,
    until: Annotated[Time | None, Query(description="Until before then; now unless given.")] = None,
    group: Annotated[UsageGroup, Query(description="What a row is. `user`: for admins.")] = "model",
    user_id: Annotated[
        str | None, Query(max_length=36, description="For admins: another user's, or `all`. Else your own.")
    ] = None,
) -> UsageOut:
    """Your own calls within a span of at most 366 days; admins may see others'."""
    end = datetime.now(UTC) if until is None else until
    begin = end - _DEFAULT if since is None else since
    if begin > end:
        raise InvalidRequest("since must not be after until.", field="since")
    if end - begin > _LONGEST:
        raise InvalidRequest("At most 366 days can be asked for at once.", field="since")
    whose = _whose(principal, group, user_id)
    rows = await services.predictions.usage(since=begin, until=end, group=group, user_id=whose, limit=_ROWS)
    total = rows
    if len(rows) == _ROWS:
        total = await services.predictions.usage(since=begin, until=end, group="day", user_id=whose)
    return UsageOut(since=begin, until=end, group=group, rows=[UsageRow.of(row) for row in rows], total=_amounts(total))


def _whose(principal: Principal, group: UsageGroup, user_id: str | None) -> str | None:
    """The user whose calls are summed, or None for all. Raises Forbidden for what is an admin's."""
    others = group == "user" if user_id is None else user_id != principal.user_id
    if others and not principal.is_admin:
        raise Forbidden("Only administrators can see what others use.")
    if user_id is None:
        return None if group == "user" else principal.user_id
    if user_id == _ALL:
        return None
    if not is_uuid7(user_id):
        raise InvalidRequest("user_id must be a user's id, or `all`.", field="user_id")
    return user_id


def _amounts(records: Sequence[UsageRecord]) -> Amounts:
    return Amounts(
        requests=sum(each.requests for each in records),
        cached=sum(each.cached for each in records),
        errors=sum(each.errors for each in records),
        prompt_tokens=sum(each.prompt_tokens for each in records),
        completion_tokens=sum(each.completion_tokens for each in records),
        cost_usd=round(sum(each.cost_nanousd for each in records) / _NANO, 9),
    )
