"""``/feedback``: what people say about answers. With a login on one's own predictions, or with an answer's feedback token.

A foreign prediction answers exactly as one that does not exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import StreamingResponse

from app.api.bodies import StrictRoute
from app.api.deps import (
    AdminPrincipal,
    ReadPrincipal,
    Services,
    ServicesDep,
    allow,
    count_against,
    current_principal,
    get_address,
)
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import is_uuid7, uuid7
from app.core.records import FeedbackRecord, PredictionRecord
from app.core.text import check_not_binary, check_text
from app.db.sqlite import store_feedback
from app.security.tokens import read_feedback_token
from app.training.datasets import Format, rows

router = APIRouter(route_class=StrictRoute, tags=["feedback"])

MAX_TEXT = 5000
MAX_TAGS = 16
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_NO_PREDICTION = "There is no such prediction."

Id = Annotated[str, Field(min_length=36, max_length=36, examples=["01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"])]


class FeedbackBody(BaseModel):
    """A rating, a correction, a preference or a comment on one prediction; at least one of them."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    prediction_id: Id | None = Field(None, description="The `id` of the answer, with your own credential.")
    feedback_token: str | None = Field(None, max_length=256, description="In its place: the answer's token; no login needed.")
    rating: Literal["up", "down"] | None = None
    correction: str | None = Field(None, description="The better answer: 1 to 5,000 characters of text.")
    preferred_over: Id | None = Field(None, description="Another prediction of yours that was worse.")
    comment: str | None = Field(None, description="1 to 5,000 characters of text.")
    tags: list[str] | None = Field(None, max_length=MAX_TAGS, description="Each as `^[a-z0-9][a-z0-9._-]{0,31}$`.")


class FeedbackOut(BaseModel):
    """One stored feedback."""

    id: str
    prediction_id: str
    rating: Literal["up", "down"] | None
    correction: str | None
    preferred_over: str | None
    comment: str | None
    tags: list[str]
    rater: str
    review: str
    created_at: datetime

    @classmethod
    def of(cls, record: FeedbackRecord) -> Self:
        return cls.model_validate(record, from_attributes=True)


class FeedbackPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[FeedbackOut]
    next: str | None


@router.post("/feedback", status_code=201, summary="Rate or correct an answer")
async def give_feedback(
    body: FeedbackBody,
    request: Request,
    response: Response,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None, Header(description="1 to 128 visible ASCII characters; the same key, the same record.")
    ] = None,
) -> FeedbackOut:
    """Stores one feedback; a newer one of the same person on the same prediction replaces the older, whose history is kept.

    With `Idempotency-Key`, sending the same again gives the same record and the header `Idempotent-Replayed: true`.
    """
    prediction, rater, user_id = await _rated(body, request, services)
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise InvalidRequest("Idempotency-Key takes 1 to 128 visible ASCII characters.", field="Idempotency-Key")
    _check(body)
    if body.preferred_over is not None:
        await _check_preference(body.preferred_over, prediction, services)
    record, replayed = await store_feedback(
        services.database,
        FeedbackRecord(
            id=uuid7(),
            prediction_id=prediction.id,
            rater=rater,
            created_at=datetime.now(UTC),
            user_id=user_id,
            rating=body.rating,
            correction=body.correction,
            preferred_over=body.preferred_over,
            comment=body.comment,
            tags=tuple(body.tags or ()),
            idempotency_key=idempotency_key,
        ),
    )
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        for kind in ("rating", "correction", "preferred_over", "comment"):
            if getattr(record, kind) is not None:
                services.metrics.feedback.labels(kind).inc()
    return FeedbackOut.of(record)


@router.get("/feedback", summary="List feedback")
async def list_feedback(
    services: ServicesDep,
    principal: ReadPrincipal,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    after: Annotated[str | None, Query(min_length=36, max_length=36)] = None,
    all: Annotated[bool, Query(description="Everybody's; admins only.")] = False,
    history: Annotated[bool, Query(description="Also what a newer feedback has replaced.")] = False,
) -> FeedbackPage:
    """Your own feedback, newest first."""
    if all:
        allow(principal, "admin")
    user_id = None if all else principal.user_id
    records = await services.feedback.list(user_id=user_id, limit=limit, after=after, current=not history)
    return FeedbackPage(
        items=[FeedbackOut.of(record) for record in records], next=records[-1].id if len(records) == limit else None
    )


@router.get(
    "/feedback/export",
    summary="Export feedback as training data",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "description": "One row a line."}},
)
async def export_feedback(
    services: ServicesDep,
    principal: AdminPrincipal,
    format: Annotated[Format, Query(description="As TRL reads it.")],
) -> StreamingResponse:
    """Current feedback as JSON lines that TRL reads: corrections as SFT and DPO, preferences as DPO, ratings as KTO."""
    headers = {"Content-Disposition": f'attachment; filename="feedback-{format}.jsonl"'}
    return StreamingResponse(_lines(services, format), media_type="application/x-ndjson", headers=headers)


async def _lines(services: Services, format: Format) -> AsyncIterator[bytes]:
    async for triple in services.feedback.export():
        for row in rows([triple], format, services.settings.training.review):
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


async def _rated(body: FeedbackBody, request: Request, services: Services) -> tuple[PredictionRecord, str, str | None]:
    """The prediction, the rater and the user: by token where one came, else by credential. Counts the call."""
    if (body.prediction_id is None) == (body.feedback_token is None):
        raise InvalidRequest("Send either prediction_id or feedback_token.", field="prediction_id")
    if body.feedback_token is not None:
        await count_against("feedback", services, await get_address(request))
        prediction_id = read_feedback_token(body.feedback_token, services.settings.security)
        return await _prediction(prediction_id, None, services), f"token:{prediction_id}", None
    principal = allow(await current_principal(request), "feedback")
    await count_against("feedback", services, principal.user_id)
    return await _prediction(body.prediction_id or "", principal.user_id, services), principal.user_id, principal.user_id


async def _prediction(prediction_id: str, user_id: str | None, services: Services) -> PredictionRecord:
    found = await services.predictions.get(prediction_id, user_id=user_id) if is_uuid7(prediction_id) else None
    if found is None:
        raise NotFound(_NO_PREDICTION)
    return found


async def _check_preference(other_id: str, prediction: PredictionRecord, services: Services) -> None:
    if other_id == prediction.id:
        raise InvalidRequest("preferred_over must be another prediction.", field="preferred_over")
    await _prediction(other_id, prediction.user_id, services)


def _check(body: FeedbackBody) -> None:
    if body.rating is body.correction is body.preferred_over is body.comment is None:
        raise InvalidRequest("Send at least one of rating, correction, preferred_over, comment.", field="rating")
    for field in ("correction", "comment"):
        value: Any = getattr(body, field)
        if value is not None:
            check_not_binary(check_text(value, field=field, limit=MAX_TEXT), field=field)
    for tag in body.tags or ():
        if not _TAG.fullmatch(tag):
            raise InvalidRequest("A tag has 1 to 32 of a-z, 0-9, dot, underscore, hyphen.", field="tags")
