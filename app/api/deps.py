"""How a route gets what it needs: the services, and who calls.

The one place that reads ``app.state``: one cast, here. FastAPI routes take the annotated aliases (`ReadPrincipal`,
`AdminPrincipal`, ...); raw ASGI routes call the plain functions of the same meaning. Nothing here decides who somebody is
(that is `app.security.auth.Authenticator`) nor builds anything (that is `app.main`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.core.errors import Forbidden, TooManyRequests, Unauthenticated
from app.core.types import Principal, Scope
from app.security.address import client_address

if TYPE_CHECKING:
    from app.core.metrics import Metrics
    from app.core.settings import Settings
    from app.db.conversations import Conversations
    from app.db.database import Database
    from app.db.feedback import Feedback
    from app.db.predictions import Predictions
    from app.db.runs import Runs
    from app.db.snapshots import Snapshots
    from app.memory.conversations import ConversationMemory
    from app.memory.documents import DocumentLibrary
    from app.memory.examples import ExampleMemory
    from app.memory.facts import FactMemory
    from app.memory.recall import Recollection
    from app.memory.vectors.base import VectorStore
    from app.models.model_manager import ModelManager
    from app.security.accounts import Accounts
    from app.security.auth import Authenticator
    from app.security.rate_limit import LimitName, RateLimiter, RateState
    from app.training.erasure import Erasure
    from app.training.jobs import Jobs
    from app.training.lineage import Lineage
    from app.training.promotion import Promotion
    from app.training.tools import Builder

PRINCIPAL = "aprendiz.principal"
"""Key in the ASGI scope under which the access log finds who called; nothing decides by it."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a route may use. Built once by ``app.main``, in the lifespan; lies in ``app.state.services``."""

    settings: Settings
    metrics: Metrics
    database: Database
    predictions: Predictions
    feedback: Feedback
    conversations: Conversations
    authenticator: Authenticator
    accounts: Accounts
    limiter: RateLimiter
    models: ModelManager
    memory: ConversationMemory
    recollection: Recollection
    documents: DocumentLibrary
    facts: FactMemory
    snapshots: Builder
    examples: ExampleMemory
    jobs: Jobs
    promotion: Promotion
    runs: Runs
    snapshot_store: Snapshots
    lineage: Lineage
    erasure: Erasure
    vectors: VectorStore
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the service begins to shut down: not ready any more, idle sockets close."""


def get_services(connection: HTTPConnection) -> Services:
    """The services of the app that serves this request or socket."""
    return cast("Services", connection.app.state.services)


async def optional_principal(connection: HTTPConnection) -> Principal | None:
    """Who calls, or None where no credential came at all. Raises Unauthenticated for a bad one."""
    principal = await get_services(connection).authenticator.principal(connection.scope["headers"])
    connection.scope[PRINCIPAL] = principal
    return principal


async def current_principal(connection: HTTPConnection) -> Principal:
    """Who calls. Raises Unauthenticated where there is no good credential."""
    principal = await optional_principal(connection)
    if principal is None:
        raise Unauthenticated("Log in, or send an API key as `Authorization: Bearer …`.")
    return principal


async def admin_principal(connection: HTTPConnection) -> Principal:
    """An admin with the admin scope. Raises Unauthenticated or Forbidden."""
    return allow(await current_principal(connection), "admin")


async def person_principal(connection: HTTPConnection) -> Principal:
    """A logged-in person: a session or its token. API keys stand for programs and may not touch accounts: Forbidden."""
    principal = await current_principal(connection)
    if principal.via == "key":
        raise Forbidden("An API key cannot do this; log in.")
    return principal


def require(scope: Scope) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """A dependency that gives the principal if its credential carries ``scope``.

    Use: ``Annotated[Principal, Depends(require("read"))]``.
    """

    async def principal_with_scope(connection: HTTPConnection) -> Principal:
        return allow(await current_principal(connection), scope)

    return principal_with_scope


def allow(principal: Principal, scope: Scope) -> Principal:
    """``principal`` itself if it may use ``scope``; raises Forbidden otherwise."""
    if scope == "admin" and not principal.is_admin:
        raise Forbidden("This needs an administrator's credential.")
    if scope not in principal.scopes:
        raise Forbidden(f"This credential does not carry the scope `{scope}`.")
    return principal


async def count_against(limit: LimitName, services: Services, *subjects: str) -> RateState:
    """Counts a call against a limit, for each of ``subjects``. Raises TooManyRequests, which the metrics count too."""
    try:
        return await services.limiter.check(limit, *subjects)
    except TooManyRequests:
        services.metrics.rejected.labels("rate_limit").inc()
        raise


async def get_address(connection: HTTPConnection) -> str:
    """The caller's address; forwarding headers count only from trusted proxies."""
    return client_address(connection.scope, get_services(connection).settings.server.trusted_proxies)


ServicesDep = Annotated[Services, Depends(get_services)]
AdminPrincipal = Annotated[Principal, Depends(admin_principal)]
PersonPrincipal = Annotated[Principal, Depends(person_principal)]
ReadPrincipal = Annotated[Principal, Depends(require("read"))]
PredictPrincipal = Annotated[Principal, Depends(require("predict"))]
ClientAddress = Annotated[str, Depends(get_address)]
