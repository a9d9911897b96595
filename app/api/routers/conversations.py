"""``/conversations``: one's own threads. They begin with ``conversation_id: "new"`` on ``/predict`` and end here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import StrictRoute
from app.api.deps import PredictPrincipal, ReadPrincipal, ServicesDep
from app.core.errors import NotFound
from app.core.ids import is_uuid7
from app.core.records import ConversationRecord, PredictionRecord
from app.core.text import check_text

router = APIRouter(prefix="/conversations", route_class=StrictRoute, tags=["conversations"])

ConversationId = Annotated[str, Path(min_length=1, max_length=64)]
_NONE = "There is no such conversation."


class ConversationOut(BaseModel):
    """A thread of answers."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, record: ConversationRecord) -> ConversationOut:
        return ConversationOut.model_validate(record, from_attributes=True)


class ConversationPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    items: list[ConversationOut]
    next: str | None


class TurnOut(BaseModel):
    """One question and its answer; ``id`` is the prediction's."""

    id: str
    prompt: str
    text: str
    model: str
    version: str
    created_at: datetime


class ConversationTurns(ConversationOut):
    """A thread with its last hundred turns, oldest first."""

    turns: list[TurnOut]
    summary: str | None = Field(description="What older turns were about, as a model has put it; null: nothing is summed up.")
    summary_until: str | None = Field(description="Id of the newest prediction that the summary covers.")


class TitleBody(BaseModel):
    """Another title."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    title: str = Field(description="One line of 1 to 80 characters.")


@router.get("", summary="List your conversations")
async def list_conversations(
    services: ServicesDep,
    principal: ReadPrincipal,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    after: Annotated[str | None, Query(min_length=36, max_length=36)] = None,
    q: Annotated[
        str | None, Query(min_length=1, max_length=200, description="In the title, or in what was said lately.")
    ] = None,
) -> ConversationPage:
    """Your conversations, newest first; with `q` those that hold it in their title, or in your newest 2,000 turns."""
    wanted = None if q is None else check_text(q, field="q", limit=200)
    found = await services.conversations.list(principal.user_id, limit=limit, after=after, containing=wanted)
    return ConversationPage(
        items=[ConversationOut.of(each) for each in found], next=found[-1].id if len(found) == limit else None
    )


@router.get("/{conversation_id}", summary="Show one")
async def show_conversation(
    conversation_id: ConversationId, services: ServicesDep, principal: ReadPrincipal
) -> ConversationTurns:
    """One conversation of yours, with its turns."""
    found = None
    if is_uuid7(conversation_id):
        found = await services.conversations.get(conversation_id, user_id=principal.user_id)
    if found is None:
        raise NotFound(_NONE)
    turns = await services.predictions.of_conversation(found.id, user_id=principal.user_id)
    return ConversationTurns(
        **ConversationOut.of(found).model_dump(),
        turns=[_turn(each) for each in turns],
        summary=found.summary,
        summary_until=found.summary_until,
    )


@router.patch("/{conversation_id}", summary="Rename one")
async def rename_conversation(
    conversation_id: ConversationId, body: TitleBody, services: ServicesDep, principal: PredictPrincipal
) -> ConversationOut:
    """Gives a conversation of yours another title."""
    title = check_text(" ".join(body.title.split()), field="title", limit=80)
    found = None
    if is_uuid7(conversation_id):
        found = await services.conversations.rename(conversation_id, title, user_id=principal.user_id)
    if found is None:
        raise NotFound(_NONE)
    return ConversationOut.of(found)


@router.delete("/{conversation_id}", status_code=204, summary="Delete one")
async def delete_conversation(conversation_id: ConversationId, services: ServicesDep, principal: PredictPrincipal) -> Response:
    """Deletes a conversation of yours with its predictions and their feedback."""
    gone = is_uuid7(conversation_id) and await services.conversations.delete(conversation_id, user_id=principal.user_id)
    if not gone:
        raise NotFound(_NONE)
    await services.models.forget_answers(principal.user_id)
    return Response(status_code=204)


def _turn(record: PredictionRecord) -> TurnOut:
    last = record.input["messages"][-1]["content"]
    return TurnOut(
        id=record.id,
        prompt=last if isinstance(last, str) else "",
        text=record.output,
        model=f"{record.provider}/{record.model}",
        version=record.version,
        created_at=record.created_at,
    )
