"""``/memory``: what the service remembers of the caller: shown, kept, edited, deleted, by nobody but them.

A fact is kept because its owner wrote it here, or agreed to a proposal. What is proposed is never recalled. What a fact
says is data: it changes no setting and grants nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import StrictRoute
from app.api.deps import PredictPrincipal, ReadPrincipal, ServicesDep
from app.core.errors import InvalidRequest
from app.core.records import FactRecord
from app.core.text import check_not_binary, check_text

router = APIRouter(prefix="/memory", route_class=StrictRoute, tags=["memory"])

MAX_FACT = 500
FactId = Annotated[str, Path(min_length=1, max_length=64)]


class SourceOut(BaseModel):
    """``prediction_id``: the answer to the message that said it; null: its owner wrote it here."""

    prediction_id: str | None


class FactOut(BaseModel):
    """Something that you said of yourself. Only what is ``kept`` is ever shown to a model."""

    id: str
    text: str
    state: Literal["proposed", "kept"]
    source: SourceOut
    created_at: datetime
    updated_at: datetime
    recalled_at: datetime | None

    @classmethod
    def of(cls, record: FactRecord) -> FactOut:
        return cls(
            id=record.id,
            text=record.text,
            state=record.state,
            source=SourceOut(prediction_id=record.prediction_id),
            created_at=record.created_at,
            updated_at=record.updated_at,
            recalled_at=record.recalled_at,
        )


class FactPage(BaseModel):
    """Newest first. ``next``: send it as ``after`` for the page behind this one; null at the end."""

    facts: list[FactOut]
    next: str | None


class FactBody(BaseModel):
    """A fact to keep."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    text: str = Field(description="One statement of 1 to 500 characters.")


class FactChange(BaseModel):
    """Other words, or the consent to keep it, or both."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    text: str | None = Field(None, description="1 to 500 characters.")
    state: Literal["kept"] | None = Field(None, description="`kept`: you agree to have it kept.")


@router.get("", summary="List what is remembered of you")
async def list_facts(
    services: ServicesDep,
    principal: ReadPrincipal,
    state: Annotated[Literal["proposed", "kept"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    after: Annotated[str | None, Query(min_length=36, max_length=36)] = None,
) -> FactPage:
    """Your facts and proposals, newest first. A proposal that nobody answers is gone after 30 days."""
    found = await services.facts.list(principal.user_id, state=state, limit=limit, after=after)
    return FactPage(facts=[FactOut.of(each) for each in found], next=found[-1].id if len(found) == limit else None)


@router.post("", status_code=201, summary="Have something remembered")
async def add_fact(body: FactBody, services: ServicesDep, principal: PredictPrincipal) -> FactOut:
    """Keeps a fact. One of the same words that you have already is kept and returned in its place."""
    return FactOut.of(await services.facts.add(principal.user_id, _checked(body.text)))


@router.patch("/{fact_id}", summary="Keep or edit one")
async def change_fact(fact_id: FactId, body: FactChange, services: ServicesDep, principal: PredictPrincipal) -> FactOut:
    """Edits a fact of yours, or keeps one that was proposed."""
    if body.text is None and body.state is None:
        raise InvalidRequest("Send text, state or both.", field="text")
    text = None if body.text is None else _checked(body.text)
    return FactOut.of(await services.facts.edit(principal.user_id, fact_id, text=text, keep=body.state == "kept"))


@router.delete("/{fact_id}", status_code=204, summary="Forget one")
async def delete_fact(fact_id: FactId, services: ServicesDep, principal: PredictPrincipal) -> Response:
    """Deletes a fact of yours with its vector, or refuses a proposal. The same words are not proposed again for 30 days."""
    await services.facts.delete(principal.user_id, fact_id)
    return Response(status_code=204)


@router.delete("", status_code=204, summary="Forget everything")
async def clear_facts(services: ServicesDep, principal: PredictPrincipal) -> Response:
    """Deletes all your facts and proposals, as if one by one."""
    await services.facts.clear(principal.user_id)
    return Response(status_code=204)


def _checked(text: str) -> str:
    return check_not_binary(check_text(text.strip(), field="text", limit=MAX_FACT), field="text")
