"""``POST /feedback/import``: feedback of other programs, as a file in the body. `app.training.importers` reads it."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request

from app.api.bodies import StrictRoute
from app.api.deps import AdminPrincipal, ServicesDep, get_address
from app.core.config import make_folder
from app.core.errors import PayloadTooLarge, StorageUnavailable, UnsupportedMediaType
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.records import AuditRecord
from app.db.audit import Audit
from app.training.foreign import MAX_IMPORT_BYTES
from app.training.importers import ImportFormat, import_feedback

router = APIRouter(route_class=StrictRoute, tags=["feedback"])

PATH: Final = "/feedback/import"
_KINDS: Final = ("application/json", "application/x-ndjson", "application/jsonl", "text/csv")


class ImportOut(BaseModel):
    """What became of an import."""

    read: int
    stored: int
    already: int = Field(description="Imported before.")
    skipped: dict[str, int] = Field(description="Rows passed over, by reason.")
    examples: list[dict[str, Any]] = Field(description="The first rows passed over: `row` and `reason`.")


@router.post(
    PATH,
    summary="Import feedback of another program",
    openapi_extra={"requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}} for kind in _KINDS}}},
)
async def import_file(
    request: Request,
    services: ServicesDep,
    principal: AdminPrincipal,
    format: Annotated[ImportFormat, Query(description="Which program's.")],
    review: Annotated[
        Literal["approved", "pending"], Query(description="`pending`: it waits in the queue; `approved`: it may train at once.")
    ] = "pending",
) -> ImportOut:
    """Stores each feedback with the answer it is about, which then belong to you. The same file again adds nothing.

    A body may have 64 MB. Rows that cannot be taken are passed over, with the reason.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in _KINDS:
        raise UnsupportedMediaType(f"Send the file as one of {', '.join(_KINDS)}.")
    # Here, under such a name: what a killed process leaves behind is tidied away with what it left of snapshots.
    place = services.settings.data_dir / "snapshots"
    make_folder(place)
    try:
        with tempfile.TemporaryDirectory(prefix=".import-", suffix=".tmp", dir=place) as folder:
            path = Path(folder) / "file"
            await _receive(request, path)
            report = await import_feedback([path], format, store=services.feedback, owner=principal.user_id, review=review)
    except OSError as error:
        raise StorageUnavailable("The file cannot be kept while it is read. Free some space and try again.") from error
    details = {"format": format, "review": review, "stored": report.stored}
    line = AuditRecord(
        id=uuid7(),
        at=datetime.now(UTC),
        actor=principal.user_id,
        action="feedback.import",
        target=format,
        details=details,
        request_id=request_id_var.get(),
        address=await get_address(request),
    )
    await Audit(services.database).add(line)
    return ImportOut.model_validate(report.as_json())


async def _receive(request: Request, path: Path) -> None:
    """Writes the body to a new file. Raises PayloadTooLarge, OSError."""
    size = 0
    with path.open("xb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_IMPORT_BYTES:
                raise PayloadTooLarge(f"An import may have at most {MAX_IMPORT_BYTES >> 20} MB.")
            await asyncio.to_thread(file.write, chunk)
