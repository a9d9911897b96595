"""Our pure ASGI middleware, and the order of all of it. Pure, for it is the only kind that streams without cost.

From the outside in: `RequestContext` (id, log line, metrics), SecurityHeaders, `Problems`, TrustedHost, RequestBounds, CORS,
CrossSiteGuard, `ApiRateLimit`. Nothing here decides who may do what: that is a dependency of each route.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import PRINCIPAL, count_against
from app.api.problems import respond
from app.core.errors import TooManyRequests
from app.core.ids import uuid7
from app.core.logging import log_data, request_id_var
from app.core.metrics import Metrics
from app.core.settings import Server
from app.security.address import client_address

if TYPE_CHECKING:
    from app.api.deps import Services

REQUEST_ID = b"x-request-id"
UNMATCHED = "unmatched"
QUIET_PATHS = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines: their access lines are DEBUG."""
LIMITED_ELSEWHERE = frozenset(
    {
        "/predict",
        "/predict/ws",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/health/live",
        "/health/ready",
    }
)
"""Paths that the limit ``api`` does not count: those that answer count addresses themselves, before they look at a credential,
and know one method each; the others are for machines. Whatever is not spelled exactly so is counted, so a variant gains
nothing."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_KEY = re.compile(r"apz_[A-Za-z0-9_-]*")
"""An API key that somebody has put into an address."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_START = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_CLIENT_GONE = 499
_log = logging.getLogger("app.access")


class RequestContext:
    """Outermost: gives each request its id, writes its access line, counts it.

    Args:
        templates: endpoint to route path, for endpoints that are not FastAPI's own; filled once all routes are known.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, server: Server, templates: Mapping[Any, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._server = server
        self._templates = templates
        self._known: dict[tuple[str, str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        header = (REQUEST_ID, request_id.encode())
        token = request_id_var.set(request_id)
        started = time.monotonic()
        status = _CLIENT_GONE

        async def stamp(message: Message) -> None:
            nonlocal status
            if message["type"] in _START:
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        self._metrics.open_requests += 1
        try:
            await self._app(scope, receive, stamp)
        finally:
            self._metrics.open_requests -= 1
            self._note(scope, status, time.monotonic() - started)
            request_id_var.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._template(scope)
        method = scope.get("method", "WEBSOCKET")
        label = method if method in _METHODS or scope["type"] == "websocket" else "other"
        count, observe = self._meters(route, label, f"{status // 100}xx")
        count()
        observe(seconds)
        level = logging.DEBUG if scope["path"] in QUIET_PATHS and status < 500 else logging.INFO
        if _log.isEnabledFor(level):
            principal = scope.get(PRINCIPAL)
            data = {
                "method": method,
                "path": _KEY.sub("apz_…", scope["path"][:300]),
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 2),
                "address": client_address(scope, self._server.trusted_proxies),
                "user": principal.user_id if principal is not None else None,
            }
            log_data(_log, level, "request", data)

    def _meters(self, route: str, method: str, status: str) -> tuple[Callable[[], None], Callable[[float], None]]:
        """The metrics of these labels, which are few; finding them anew takes longer than counting."""
        meters = self._known.get((route, method, status))
        if meters is None:
            count = self._metrics.requests.labels(route, method, status).inc
            meters = self._known[route, method, status] = (count, self._metrics.request_seconds.labels(route).observe)
        return meters

    def _template(self, scope: Scope) -> str:
        """The route's path as written in the code, never the caller's: metrics stay bounded."""
        route = scope.get("route")
        if route is not None:
            return str(getattr(route, "path_format", UNMATCHED))
        return self._templates.get(scope.get("endpoint"), UNMATCHED)


class ApiRateLimit:
    """Counts calls per address against the limit ``api``, and shows the state in the RateLimit headers."""

    def __init__(self, app: ASGIApp, *, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in LIMITED_ELSEWHERE:
            await self._app(scope, receive, send)
            return
        services = cast("Services", scope["app"].state.services)
        try:
            state = await count_against("api", services, client_address(scope, self._server.trusted_proxies))
        except TooManyRequests as error:
            await respond(error, scope, receive, send)
            return
        extra = [(name.lower().encode(), value.encode()) for name, value in state.headers()]

        async def add_state(message: Message) -> None:
            if message["type"] in _START:
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        await self._app(scope, receive, add_state)


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-ID where it is harmless and alone, else a new one."""
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0], "ascii")
    return uuid7()
