"""FastAPI with a short way in for the hot routes.

FastAPI's own stack (error page, telemetry, exit stack, router) costs a hot route a good part of all its time. So our middleware
comes first, and behind it a table of exact paths leads to the raw endpoints; whatever is not in it goes the usual way. The hot
routes stand in the router too, which answers 405 for their other methods and knows them for the documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send


class Application(FastAPI):
    """FastAPI, with ``edge`` around everything, and raw routes with fixed paths before its own stack.

    Args:
        edge: middleware, outermost first; it answers errors, those of the hot routes too.
        raw: Starlette's own routes, whose endpoints raise our errors.
    """

    def __init__(self, *, edge: Iterable[Middleware], raw: Iterable[BaseRoute], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._edge = tuple(edge)
        routes = list(raw)
        self.router.routes.extend(routes)
        fixed = [route for route in routes if type(route) is Route and "{" not in route.path]
        self._hot = {(method, route.path): route for route in fixed for method in route.methods or ()}

    def build_middleware_stack(self) -> ASGIApp:
        """See Starlette's."""
        own = super().build_middleware_stack()
        # Its outermost layer answers what nothing inside answered; that is the edge's work, in our own words.
        app: ASGIApp = _HotRoutes(own.app if isinstance(own, ServerErrorMiddleware) else own, self._hot)
        for cls, args, kwargs in reversed(self._edge):
            app = cls(app, *args, **kwargs)
        return app


class _HotRoutes:
    def __init__(self, app: ASGIApp, routes: Mapping[tuple[str, str], Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = route.endpoint
        await route.app(scope, receive, send)
