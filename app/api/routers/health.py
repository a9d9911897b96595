"""``/health/live``, ``/health/ready`` and ``/metrics``: what machines ask every few seconds; the first two need no login."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.requests import Request

from app.api.bodies import StrictRoute
from app.api.deps import Services, ServicesDep, optional_principal
from app.core.errors import AprendizError, Forbidden, Unauthenticated
from app.core.metrics import CONTENT_TYPE

router = APIRouter(route_class=StrictRoute, tags=["operation"])

_PING_S = 1.0
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Live(BaseModel):
    """The process runs."""

    live: bool = True


class Check(BaseModel):
    """One condition; ``detail`` says what is wrong."""

    ok: bool
    detail: str | None = None


class Checks(BaseModel):
    """All conditions of readiness."""

    database: Check
    model: Check
    draining: Check


class Ready(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    checks: Checks


@router.get("/health/live", summary="Does the process run")
async def live() -> Live:
    """200 as long as the process runs, also while it shuts down."""
    return Live()


@router.get("/health/ready", summary="Can it answer", responses={503: {"model": Ready, "description": "Not now."}})
async def ready(services: ServicesDep, response: Response) -> Ready:
    """200 if a prediction would be answered now, else 503 with the reason."""
    status = services.models.status()
    draining = services.draining.is_set() or status.draining
    checks = Checks(
        database=await _database(services),
        model=Check(ok=status.ready or status.draining, detail=None if status.draining else status.reason),
        draining=Check(ok=not draining, detail="The service is shutting down." if draining else None),
    )
    good = checks.database.ok and checks.model.ok and checks.draining.ok
    response.status_code = 200 if good else 503
    return Ready(ready=good, checks=checks)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text exposition format."}},
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Open from this machine, with `metrics.token` as Bearer token, and to admins."""
    if not await _may_read_metrics(request, services):
        raise Forbidden("Metrics are open from this machine, with the metrics token, and to admins.")
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)


async def _database(services: Services) -> Check:
    try:
        async with asyncio.timeout(_PING_S):
            await services.database.ping()
    except AprendizError as error:
        return Check(ok=False, detail=error.detail)
    except TimeoutError:
        return Check(ok=False, detail="The database does not answer.")
    return Check(ok=True)


async def _may_read_metrics(request: Request, services: Services) -> bool:
    if _is_local(request):
        return True
    token = services.settings.metrics.token
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    secret = token.get_secret_value().encode() if token is not None and scheme.lower() == "bearer" else None
    if secret is not None and hmac.compare_digest(given.strip().encode(), secret):
        return True
    try:
        principal = await optional_principal(request)
    except Unauthenticated:
        return False
    return principal is not None and principal.is_admin


def _is_local(request: Request) -> bool:
    """Whether the peer itself is on this machine: a proxy on this machine that forwards for others is not."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
