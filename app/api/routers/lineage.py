"""What is behind an answer, where a person's data went, and how a person is erased. `app.training.lineage` and
`app.training.erasure` do the work."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import StrictRoute
from app.api.deps import AdminPrincipal, ClientAddress, ReadPrincipal, ServicesDep
from app.api.routers.auth import AdminPerson
from app.training.erasure_stores import ErasureReport
from app.training.lineage import PersonLineage, PredictionLineage, VersionLineage

router = APIRouter(route_class=StrictRoute, tags=["training"])

Id = Annotated[str, Path(min_length=1, max_length=64)]


class ErasureBody(BaseModel):
    """Who is to be erased."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    user_id: str = Field(min_length=1, max_length=64, description="The account.")
    delete_backups: bool = Field(False, description="Also delete the backups of the database that this service made.")


@router.get("/training/lineage/predictions/{prediction_id}", summary="What is behind an answer (admin)")
async def lineage_of_prediction(prediction_id: Id, services: ServicesDep, principal: AdminPrincipal) -> PredictionLineage:
    """From the answer to its version, adapter, run, snapshot and the feedback behind it, and the examples it was shown."""
    return await services.lineage.of_prediction(prediction_id)


@router.get("/training/lineage/versions/{version}", summary="What a version is made of (admin)")
async def lineage_of_version(version: Id, services: ServicesDep, principal: AdminPrincipal) -> VersionLineage:
    """Its adapter, run, snapshot and the feedback behind it, and which aliases mean it."""
    return await services.lineage.of_version(version)


@router.get("/training/lineage/users/{user_id}", summary="Where a person's data went (admin)")
async def lineage_of_user(user_id: Id, services: ServicesDep, principal: AdminPrincipal) -> PersonLineage:
    """The snapshots that hold it, the runs that were trained on them, and which of their versions serve."""
    return await services.lineage.of_person(user_id)


@router.get("/auth/me/lineage", tags=["auth"], summary="Where my data went")
async def my_lineage(services: ServicesDep, principal: ReadPrincipal) -> PersonLineage:
    """The same for the caller's own data."""
    return await services.lineage.of_person(principal.user_id)


@router.post("/training/erasures", summary="Erase a person (admin)")
async def erase(body: ErasureBody, services: ServicesDep, principal: AdminPerson, address: ClientAddress) -> ErasureReport:
    """Deletes the account with all that is its own, retires every adapter that has seen its data, and says what it did.

    What serves goes back to the newest version without that data. An erasure that was cut off goes on by itself, or when it is
    asked for again.
    """
    return await services.erasure.erase(body.user_id, actor=principal, delete_backups=body.delete_backups, address=address)
