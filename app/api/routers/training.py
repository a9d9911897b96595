"""``/training``: runs and snapshots, for admins. `app.training.jobs` does the work; here ids are checked and files shown."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from fastapi import APIRouter, Header, Query, Response
from starlette.responses import HTMLResponse

from app.api.bodies import StrictRoute
from app.api.deps import AdminPrincipal, Services, ServicesDep
from app.api.event_stream import EventStream, Item
from app.api.routers.training_bodies import (
    PreviewOut,
    RunBody,
    RunOut,
    RunPage,
    SnapshotBody,
    SnapshotOut,
    SnapshotPage,
)
from app.core.errors import InvalidRequest, NotFound, StorageUnavailable, TooLittleFeedback
from app.core.ids import is_uuid7
from app.core.records import RunState
from app.training.folders import LOG, read_bytes, read_json, read_tail
from app.training.jobs import OPEN
from app.training.reports import choose_method

router = APIRouter(prefix="/training", route_class=StrictRoute, tags=["training"])

_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
_STYLE: Final = re.compile(rb"<style>(.*?)</style>", re.DOTALL)
_MOST_PAGE: Final = 8 << 20
_MOST_PICTURE: Final = 4 << 20
_MOST_LOG: Final = 1 << 16
_MARK: Final = re.compile(r"[0-9]{1,15}")

T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[str | None, Query(min_length=36, max_length=36)]


@router.post("/runs", status_code=201, summary="Start a training run")
async def start_run(
    body: RunBody,
    response: Response,
    services: ServicesDep,
    principal: AdminPrincipal,
    idempotency_key: Annotated[
        str | None, Header(description="1 to 128 visible ASCII characters; the same key, the same run.")
    ] = None,
) -> RunOut:
    """Orders a run: a snapshot of the feedback, training, the gate, and the promotion if that is asked for.

    One runs at a time, the others wait. With `Idempotency-Key`, sending the same again gives the same run and the header
    `Idempotent-Replayed: true`.
    """
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise InvalidRequest("Idempotency-Key takes 1 to 128 visible ASCII characters.", field="Idempotency-Key")
    run, replayed = await services.jobs.submit_once(
        idempotency_key,
        method=body.method,
        promote=body.promote,
        config=body.config,
        snapshot_id=body.snapshot,
        rules=body.plan(),
        actor=principal,
    )
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return RunOut.of(run, services.jobs.progress(run))


@router.get("/runs", summary="List training runs")
async def list_runs(
    services: ServicesDep,
    principal: AdminPrincipal,
    limit: Limit = 100,
    after: After = None,
    state: Annotated[RunState | None, Query(description="Only those.")] = None,
) -> RunPage:
    """All runs, newest first."""
    states = get_args(RunState) if state is None else (state,)
    runs = await services.runs.list(states=states, limit=limit, after=after)
    items = [RunOut.of(run, services.jobs.progress(run)) for run in runs]
    return RunPage(items=items, next=runs[-1].id if len(runs) == limit else None)


@router.get("/runs/{run_id}", summary="One training run")
async def show_run(run_id: str, services: ServicesDep, principal: AdminPrincipal) -> RunOut:
    """Its state, how far it is, what came of it, and what the gate says."""
    run = await services.jobs.get(run_id)
    return RunOut.of(run, services.jobs.progress(run))


@router.post("/runs/{run_id}/cancel", status_code=202, summary="Cancel a training run")
async def cancel_run(run_id: str, services: ServicesDep, principal: AdminPrincipal) -> RunOut:
    """Ends a run; one that trains takes some seconds. 409 where it has ended already, or is being promoted."""
    run = await services.jobs.cancel(run_id, actor=principal)
    return RunOut.of(run, services.jobs.progress(run))


@router.get(
    "/runs/{run_id}/events",
    status_code=200,
    summary="Follow a training run",
    response_class=EventStream,
    responses={
        200: {
            "description": "Server-sent events: all of the run's events, then those that come; last `end` with the run.",
            "content": {"text/event-stream": {"example": 'id: 212\nevent: step\ndata: {"step":1,"loss":3.1}\n\n'}},
        }
    },
)
async def follow_run(
    run_id: str,
    services: ServicesDep,
    principal: AdminPrincipal,
    last_event_id: Annotated[str | None, Header(description="The `id` of the last event that you have.")] = None,
) -> EventStream:
    """`phase`, `step`, `checkpoint`, `resumed`, `paused`, `continued`, `done`, `failed` and others as they come, then `end`.

    A stream without `end` was cut: ask again with `Last-Event-ID`.
    """
    run = await services.jobs.get(run_id)
    mark = last_event_id or "0"
    if not _MARK.fullmatch(mark):
        raise InvalidRequest("Last-Event-ID is no id of an event of ours.", field="Last-Event-ID")
    return EventStream(_events(services, run.id, int(mark)), services=services, principal=principal)


@router.get(
    "/runs/{run_id}/report",
    summary="The gate's report",
    response_model=dict[str, Any],
    responses={200: {"content": {"text/html": {}}, "description": "The report: JSON, or a page to read."}},
)
async def show_report(
    run_id: str,
    services: ServicesDep,
    principal: AdminPrincipal,
    format: Annotated[Literal["json", "html"], Query(description="For a program, or for a person.")] = "json",
) -> Any:
    """What the gate measured and why it decided as it did. 404 before it has."""
    folder = await _folder(services, run_id)
    if format == "json":
        report = await _read(read_json, folder / "report.json")
        if report is None:
            raise NotFound("This run has no report: the gate has not judged it.")
        return report
    page = await _read(read_bytes, folder / "report.html", limit=_MOST_PAGE)
    if page is None:
        raise NotFound("This run has no report: the gate has not judged it.")
    return HTMLResponse(page, headers={"Content-Security-Policy": _policy(page)})


@router.get(
    "/runs/{run_id}/loss.png",
    summary="The loss curve",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "A picture."}},
)
async def show_loss(run_id: str, services: ServicesDep, principal: AdminPrincipal) -> Response:
    """Loss over steps, as a picture. 404 before there is one."""
    picture = await _read(read_bytes, await _folder(services, run_id) / "loss.png", limit=_MOST_PICTURE)
    if picture is None:
        raise NotFound("This run has no loss curve yet.")
    return Response(picture, media_type="image/png")


@router.get(
    "/runs/{run_id}/log",
    summary="The log of a training run",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The last 64 KiB."}},
)
async def show_log(run_id: str, services: ServicesDep, principal: AdminPrincipal) -> Response:
    """What the training process printed, the end of it."""
    log = await _read(read_tail, await _folder(services, run_id) / LOG, limit=_MOST_LOG)
    return Response(log, media_type="text/plain; charset=utf-8")


@router.get("/snapshots", summary="List snapshots")
async def list_snapshots(
    services: ServicesDep, principal: AdminPrincipal, limit: Limit = 100, after: After = None
) -> SnapshotPage:
    """All frozen datasets, newest first."""
    found = await services.snapshot_store.list(limit=limit, after=after)
    return SnapshotPage(items=[SnapshotOut.of(each) for each in found], next=found[-1].id if len(found) == limit else None)


@router.post("/snapshots", status_code=201, summary="Freeze a dataset")
async def make_snapshot(body: SnapshotBody, services: ServicesDep, principal: AdminPrincipal) -> SnapshotOut:
    """Makes a dataset of the feedback that there is now. 409 where it is too little; the text says what is missing."""
    return SnapshotOut.of(await services.snapshots.build(body, actor=principal))


@router.post("/snapshots/preview", summary="What a snapshot would hold")
async def preview_snapshot(body: SnapshotBody, services: ServicesDep, principal: AdminPrincipal) -> PreviewOut:
    """The report that a snapshot made now would have; nothing is stored."""
    report = await services.snapshots.preview(body)
    try:
        method = choose_method(report)
    except TooLittleFeedback:
        return PreviewOut(method=None, report=dict(report))
    return PreviewOut(method=method, report=dict(report))


@router.get("/snapshots/{snapshot_id}", summary="One snapshot")
async def show_snapshot(snapshot_id: str, services: ServicesDep, principal: AdminPrincipal) -> SnapshotOut:
    """How it was made and what it holds."""
    found = await services.snapshot_store.get(snapshot_id) if is_uuid7(snapshot_id) else None
    if found is None:
        raise NotFound("There is no such snapshot.")
    return SnapshotOut.of(found)


async def _folder(services: Services, run_id: str) -> Path:
    """The folder of a run that exists; its id is one of ours. Raises NotFound."""
    run = await services.jobs.get(run_id)
    return services.jobs.folder(run.id)


async def _read(read: Callable[..., T], path: Path, **limits: int) -> T:
    try:
        return await asyncio.to_thread(read, path, **limits)
    except OSError as error:
        raise StorageUnavailable("The files of this run cannot be read. The log of the service says more.") from error


async def _events(services: Services, run_id: str, after: int) -> AsyncGenerator[Item, None]:
    async for event in services.jobs.events(run_id, after):
        yield event.pop("id", None), event.pop("event"), event
    run = await services.jobs.get(run_id)
    if run.state not in OPEN:
        yield None, "end", RunOut.of(run, services.jobs.progress(run)).model_dump(mode="json")


def _policy(page: bytes) -> str:
    """A content security policy under which exactly this page's own style works, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _STYLE.findall(page)]
    style = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; style-src {style}; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'; sandbox"
    )
