"""``/feedback/review``: what waits for an admin before it trains, and the admin's word on it. It trains nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from app.api.bodies import StrictRoute
from app.api.deps import AdminPrincipal, ServicesDep, get_address
from app.api.routers.feedback import MAX_TEXT, FeedbackOut
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import is_uuid7, uuid7
from app.core.logging import request_id_var
from app.core.records import AuditRecord, ReviewStatus
from app.core.text import check_not_binary, check_text
from app.db.audit import Audit
from app.db.feedback import Queued
from app.training.datasets import prompt_of
from app.training.scan import scan

router = APIRouter(route_class=StrictRoute, tags=["feedback"])

_SHOWN = 20_000
"""Characters of a message that a page shows."""
_TURNS = 20
_DECISIONS: Mapping[str, ReviewStatus] = {
    "approve": "approved",
    "edit": "approved",
    "reject": "rejected",
    "reset": "pending",
}


class TurnOut(BaseModel):
    """One turn of a prompt, at most its first 20,000 characters."""

    role: str
    content: str


class ReviewedOut(FeedbackOut):
    """A feedback with what its reviewer made of it."""

    edited: str | None
    reviewed_at: datetime | None
    reviewed_by: str | None


class WaitingOut(ReviewedOut):
    """A feedback that waits, with what it is about."""

    prompt: list[TurnOut] | None = Field(description="The last 20 turns; null where they hold more than text.")
    answer: str
    model: str
    other_answer: str | None = Field(description="The answer that this one was preferred over.")
    flags: list[str] = Field(description="What a scan found in the texts: kinds of personal data, secrets, control tokens.")
    reason: str | None = Field(description="Why the newest snapshot set it aside.")


class WaitingPage(BaseModel):
    """``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[WaitingOut]
    next: str | None


class ReviewBody(BaseModel):
    """An admin's word on a feedback."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    decision: Literal["approve", "edit", "reject", "reset"]
    correction: str | None = Field(None, description="With `edit`: the correction as it should train, 1 to 5,000 characters.")


@router.get("/feedback/review", summary="List feedback that waits for a review")
async def list_waiting(
    services: ServicesDep,
    principal: AdminPrincipal,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(min_length=36, max_length=36)] = None,
) -> WaitingPage:
    """First what the newest snapshot set aside, then corrections and imports without a review, oldest first."""
    found = await services.feedback.queue(limit=limit, after=after)
    items = await asyncio.to_thread(lambda: [_waiting(each) for each in found])
    return WaitingPage(items=items, next=items[-1].id if len(items) == limit else None)


@router.post("/feedback/{feedback_id}/review", summary="Approve, edit or reject a feedback")
async def review(
    feedback_id: Annotated[str, Path(min_length=1, max_length=64)],
    body: ReviewBody,
    request: Request,
    services: ServicesDep,
    principal: AdminPrincipal,
) -> ReviewedOut:
    """Approved feedback trains even where it was set aside, and an approved correction serves as an example at once.

    The same decision again changes nothing; `reset` takes it back.
    """
    if not is_uuid7(feedback_id):
        raise NotFound("There is no such feedback.")
    if (body.correction is not None) != (body.decision == "edit"):
        raise InvalidRequest("correction goes with the decision edit, and edit with a correction.", field="correction")
    if body.correction is not None:
        check_not_binary(check_text(body.correction, field="correction", limit=MAX_TEXT), field="correction")
    now = datetime.now(UTC)
    record, changed = await services.feedback.review(
        feedback_id, _DECISIONS[body.decision], edited=body.correction, reviewer=principal.user_id, now=now
    )
    if changed:
        line = AuditRecord(
            id=uuid7(),
            at=now,
            actor=principal.user_id,
            action="feedback.review",
            target=record.id,
            details={"decision": body.decision},
            request_id=request_id_var.get(),
            address=await get_address(request),
        )
        await Audit(services.database).add(line)
        await services.examples.note(record)
    return ReviewedOut.of(record)


def _waiting(queued: Queued) -> WaitingOut:
    record, prediction, other, reason = queued
    prompt = prompt_of(prediction)
    turns = None if prompt is None else [TurnOut(role=each["role"], content=each["content"][:_SHOWN]) for each in prompt]
    texts = [record.correction or "", prediction.output, *(turn.content for turn in turns or ())]
    more: dict[str, Any] = {
        "prompt": None if turns is None else turns[-_TURNS:],
        "answer": prediction.output[:_SHOWN],
        "model": f"{prediction.provider}/{prediction.model}" if prediction.provider != "import" else prediction.model,
        "other_answer": None if other is None else other.output[:_SHOWN],
        "flags": sorted({kind for text in texts for kind in scan(text[:_SHOWN])}),
        "reason": reason,
    }
    return WaitingOut.model_validate({**ReviewedOut.of(record).model_dump(), **more})
