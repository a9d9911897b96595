"""Our pure ASGI middleware, and the order of all of it. Pure, for it is the only kind that streams without cost.

From the outside in: `RequestContext` (id, log line, metrics), SecurityHeaders, `Problems`, `TrustedHost`, RequestBounds, CORS,
CrossSiteGuard, `ApiRateLimit`. Nothing here decides who may do what: that is a dependency of each route.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import PRINCIPAL
from app.api.problems import respond
from app.core.errors import TooManyRequests
from app.core.ids import uuid7
from app.core.logging import request_id_var
from app.core.metrics import Metrics
from app.core.settings import Server
from app.security.address import client_address

if TYPE_CHECKING:
    from app.api.deps import Services

REQUEST_ID = b"x-request-id"
UNMATCHED = "unmatched"
QUIET_PATHS = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines: their access lines are DEBUG."""
LIMITED_ELSEWHERE = frozenset({"/predict", "/predict/ws", "/feedback", "/health/live", "/health/ready"})
"""Paths that the limit ``api`` does not count: the first three have limits of their own."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}))(?::[0-9]{1,5})?")
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

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, stamp)
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, status, time.monotonic() - started)
            request_id_var.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._template(scope)
        method = scope.get("method", "WEBSOCKET")
        label = method if method in _METHODS or scope["type"] == "websocket" else "other"
        self._metrics.requests.labels(route, label, f"{status // 100}xx").inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if scope["path"] in QUIET_PATHS and status < 500 else logging.INFO
        if _log.isEnabledFor(level):
            principal = scope.get(PRINCIPAL)
            data = {
                "method": method,
                "path": scope["path"][:300],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 2),
                "address": client_address(scope, self._server.trusted_proxies),
                "user": principal.user_id if principal is not None else None,
            }
            _log.log(level, "request", extra={"data": data})

    def _template(self, scope: Scope) -> str:
        """The route's path as written in the code, never the caller's: metrics stay bounded."""
        route = scope.get("route")
        if route is not None:
            return str(getattr(route, "path_format", UNMATCHED))
        return self._templates.get(scope.get("endpoint"), UNMATCHED)


class TrustedHost:
    """Serves only host names that we go by: one well-formed Host header, with or without a port.

    Answers 400 for a malformed Host, and 421 for one that is not ours.
    """

    def __init__(self, app: ASGIApp, *, server: Server) -> None:
        self._app = app
        names = {name.lower() for name in server.trusted_hosts}
        public = urlsplit(server.public_url).hostname
        if public:
            names.add(public if ":" not in public else f"[{public}]")
        if server.host not in ("0.0.0.0", "::", ""):  # noqa: S104  # the wildcard is no name
            names.add(server.host.lower() if ":" not in server.host else f"[{server.host}]")
        self._all = "*" in names
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        match = _HOST.fullmatch(hosts[0].decode("latin-1").lower()) if len(hosts) == 1 else None
        if match is None:
            raise HTTPException(400, "Send exactly one Host header, with a host name and perhaps a port.")
        name = match.group(1)
        if not (self._all or name in self._names or name.endswith(self._suffixes or "\0")):
            raise HTTPException(421, "This service does not go by that host name. An operator adds it to server.trusted_hosts.")


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
            state = await services.limiter.check("api", client_address(scope, self._server.trusted_proxies))
        except TooManyRequests as error:
            services.metrics.rejected.labels("rate_limit").inc()
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
        return given[0].decode("ascii")
    return uuid7()
