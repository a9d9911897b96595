"""The composition root: builds everything in order, closes it in reverse, and owns nothing.

``app.main:app`` works for any ASGI server; it is made on first use, by the module's ``__getattr__``: importing does nothing.
`serve` is the way that bounds connections and drains on SIGTERM; ``python -m app.main`` and ``aprendiz serve`` use it.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app import __version__, remembering
from app.api import openapi, problems, server
from app.api.application import Application
from app.api.deps import Services
from app.api.middleware import ApiRateLimit, RequestContext
from app.api.routers import (
    auth,
    conversations,
    documents,
    feedback,
    health,
    imports,
    lineage,
    memory,
    model,
    predict,
    review,
    socket,
    training,
    usage,
)
from app.api.v1 import routes as v1
from app.core import config
from app.core.errors import AprendizError
from app.core.files import FileHashes
from app.core.logging import configure
from app.core.metrics import Metrics
from app.core.settings import Settings
from app.db.audit import Audit
from app.db.conversations import Conversations
from app.db.database import Database, open_database
from app.db.erased import Erased
from app.db.examples import Examples
from app.db.feedback import Feedback
from app.db.invites import Invites
from app.db.keys import Keys
from app.db.predictions import Predictions
from app.db.runs import Canaries, GateAttempts, Runs
from app.db.sessions import Sessions
from app.db.snapshots import Snapshots
from app.db.users import Users
from app.db.versions import Aliases, Versions
from app.db.votes import Votes
from app.memory.examples import ExampleMemory
from app.models.adapters import Adapters
from app.models.cache import ResponseCache
from app.models.costs import Ledger
from app.models.local import Resolver
from app.models.model_manager import ModelManager
from app.models.stores import ModelStores
from app.providers.base import ProviderContext
from app.providers.registry import ProviderRegistry
from app.security.accounts import Accounts
from app.security.auth import Authenticator
from app.security.desk import Desk
from app.security.edge import CrossSiteGuard, RequestBounds, SecurityHeaders, TrustedHost
from app.security.passwords import Passwords
from app.security.rate_limit import RateLimiter
from app.security.tokens import SessionTokens
from app.training.bases import Bases
from app.training.canary import LiveStores
from app.training.erasure import erasure
from app.training.erasure_stores import Live
from app.training.folders import Folders
from app.training.foreign import MAX_IMPORT_BYTES
from app.training.gate.judge import Gate
from app.training.jobs import Jobs
from app.training.lineage import Lineage
from app.training.promotion import Promotion
from app.training.rehearsal import Rehearsal
from app.training.rules import Rules
from app.training.serving import Serving
from app.training.snapshots import SnapshotBuilder
from app.training.tools import Tools
from app.web import pages


def create_app(
    settings: Settings,
    *,
    announce: Callable[[str], None] | None = None,
    training_tools: Callable[[Tools], Tools] | None = None,
) -> FastAPI:
    """The whole service as one ASGI app; nothing is opened before its lifespan starts.

    Args:
        settings: with a secret key, see `app.core.config.with_secret_key`.
        announce: takes the lines for the operator (address, first invite); standard output unless told.
        training_tools: changes what training runs work with; tests train with less than a model.
    """
    metrics = Metrics()
    templates: dict[Any, str] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                services = await build(settings, metrics, stack, training_tools)
            except AprendizError as error:
                app.state.start_failure = error
                raise
            app.state.services = services
            await _announce(services, announce or _print)
            yield

    app = Application(
        edge=_middleware(settings, metrics, templates),
        raw=[predict.route(), socket.route(), *v1.routes()],
        title="Aprendiz",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # ours are Prometheus and the log; this costs each request
    )
    problems.register(app, methods_of=functools.partial(openapi.methods_of, app))
    for module in (
        auth,
        feedback,
        imports,
        review,
        model,
        training,
        lineage,
        conversations,
        memory,
        documents,
        usage,
        health,
        openapi,
    ):
        app.include_router(module.router)
    app.router.routes.extend(pages.routes())
    openapi.install(app)
    templates.update(openapi.templates(app))
    return app


async def build(
    settings: Settings,
    metrics: Metrics,
    stack: contextlib.AsyncExitStack,
    training_tools: Callable[[Tools], Tools] | None = None,
) -> Services:
    """Opens everything, bottom up; ``stack`` closes it in reverse."""
    config.make_folder(settings.data_dir)
    database = open_database(settings, metrics)
    await database.open()
    stack.push_async_callback(database.aclose)
    users, sessions, keys = Users(database), Sessions(database), Keys(database)
    predictions, conversations, audit = Predictions(database), Conversations(database), Audit(database)
    tokens = SessionTokens(settings.security)
    authenticator = Authenticator(settings, tokens=tokens, users=users, sessions=sessions, keys=keys)
    stack.push_async_callback(authenticator.aclose)
    limiter = RateLimiter(settings.rate_limits)
    passwords = Passwords()
    stack.callback(passwords.close)
    desk = Desk(
        settings=settings.security,
        users=users,
        invites=Invites(database),
        sessions=sessions,
        keys=keys,
        audit=audit,
        passwords=passwords,
        tokens=tokens,
        authenticator=authenticator,
        limiter=limiter,
        metrics=metrics,
    )
    examples = ExampleMemory(Examples(database), settings.training)
    stack.push_async_callback(examples.aclose)
    context = _provider_context(settings, stack)
    runs = Runs(database)
    rules = Rules(runs)
    models = ModelManager(
        settings.model,
        providers=ProviderRegistry(context, settings.providers.allowed),
        stores=ModelStores(predictions, Versions(database), Aliases(database), audit),
        metrics=metrics,
        routing=settings.routing,
        upstreams=settings.providers.upstreams,
        cache=ResponseCache(
            settings.cache, metrics=metrics, waiting=settings.model.queue, wait_s=settings.model.queue_timeout_s
        ),
        ledger=Ledger(settings.costs, predictions),
        recall=examples,
        memory=settings.memory,
        embedder=settings.memory.embedder,
        guard=rules.check,
    )
    stack.push_async_callback(models.aclose)
    await examples.start()
    await models.start()
    given, frozen = Feedback(database), Snapshots(database)
    remembered = await remembering.build(settings, database, models, context, metrics, stack)
    live = LiveStores(Canaries(database), Votes(database))
    promotion = Promotion(models, rules=rules, stores=live, audit=audit, metrics=metrics)
    stack.push_async_callback(promotion.aclose)
    await promotion.start()
    tools = _training(settings, database, models, promotion, context, metrics)
    tools = tools if training_tools is None else training_tools(tools)
    config.make_folder(tools.folders.runs)
    jobs = Jobs(tools, runs=runs, audit=audit, runs_per_day=settings.training.runs_per_day)
    stack.push_async_callback(jobs.aclose)
    await jobs.start()
    serving = Serving(models, promotion)
    removal = erasure(
        settings,
        database,
        Live(jobs, serving, models, lambda user_id: authenticator.forget(user_id=user_id), remembered.forget),
    )
    stack.push_async_callback(removal.aclose)
    await removal.start()
    return Services(
        settings=settings,
        metrics=metrics,
        database=database,
        predictions=predictions,
        feedback=given,
        conversations=conversations,
        authenticator=authenticator,
        accounts=Accounts(desk),
        limiter=limiter,
        models=models,
        memory=remembered.conversations,
        documents=remembered.documents,
        facts=remembered.facts,
        recollection=remembered.recollection,
        snapshots=tools.builder,
        examples=examples,
        jobs=jobs,
        promotion=promotion,
        runs=runs,
        snapshot_store=frozen,
        lineage=Lineage(
            predictions=predictions,
            snapshots=frozen,
            runs=runs,
            versions=Versions(database),
            people=Erased(database),
            serving=serving,
        ),
        erasure=removal,
        vectors=remembered.vectors,
    )


def serve(settings: Settings) -> None:
    """Serves until a signal. Raises AprendizError where it cannot start: no address, no database, a newer schema."""
    server.run(create_app, settings)


def main(*, say: Callable[[], None] | None = None) -> int:
    """Loads the configuration and serves; returns the exit code. ``say`` is called once the logs are configured."""
    try:
        settings = config.with_secret_key(config.load()).settings
        configure(settings.logging, secrets=config.secrets_in(settings))
        if say is not None:
            say()
        serve(settings)
    except AprendizError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 1
    return 0


def _middleware(settings: Settings, metrics: Metrics, templates: dict[Any, str]) -> list[Middleware]:
    """Outermost first; see `app.api.middleware`."""
    edge = settings.server
    larger = {imports.PATH: MAX_IMPORT_BYTES, documents.PATH: documents.most_body_bytes(settings.memory)}
    own = () if edge.host != edge.local_host else (f"[{edge.host}]" if ":" in edge.host else edge.host,)
    hosts = (*edge.trusted_hosts, *own)
    named = edge.model_copy(update={"trusted_hosts": hosts})
    found = [
        Middleware(RequestContext, metrics=metrics, server=edge, templates=templates),
        Middleware(SecurityHeaders, edge),
        Middleware(problems.Problems),
        Middleware(TrustedHost, named, respond=problems.respond),
        Middleware(RequestBounds, edge, respond=problems.respond, larger=larger),
    ]
    if edge.cors_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=edge.cors_origins,
                allow_methods=("GET", "POST", "DELETE", "PATCH"),
                allow_headers=(
                    *("Authorization", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-ID"),
                    *("X-Aprendiz-Memory", "X-Aprendiz-Documents"),
                ),
                expose_headers=(
                    *("X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", "Idempotent-Replayed"),
                    "X-Aprendiz-Context",
                ),
            )
        )
    found += [Middleware(CrossSiteGuard, edge, respond=problems.respond), Middleware(ApiRateLimit, server=edge)]
    return found


def _provider_context(settings: Settings, stack: contextlib.AsyncExitStack) -> ProviderContext:
    models_dir = settings.data_dir / "models"
    config.make_folder(models_dir)
    # Not in the data directory: the path of a Unix socket may have 107 bytes, and that one may be anywhere.
    runtime_dir = Path(tempfile.mkdtemp(prefix="aprendiz-"))
    stack.callback(shutil.rmtree, runtime_dir, ignore_errors=True)
    hashes = FileHashes()  # shared: what was hashed to be checked is not hashed again to be named
    return ProviderContext(
        model=settings.model,
        providers=settings.providers,
        models_dir=models_dir,
        runtime_dir=runtime_dir,
        resolve=Resolver(models_dir, hashes),
        hashes=hashes,
        adapter=Adapters(settings.data_dir / "adapters", hashes),
    )


def _training(
    settings: Settings,
    database: Database,
    models: ModelManager,
    promotion: Promotion,
    context: ProviderContext,
    metrics: Metrics,
) -> Tools:
    folders, snapshots = Folders(settings.data_dir), Snapshots(database)
    return Tools(
        runs=Runs(database),
        snapshots=snapshots,
        builder=SnapshotBuilder(feedback=Feedback(database), snapshots=snapshots, settings=settings),
        models=models,
        judge=Gate(models=models, attempts=GateAttempts(database), snapshots=snapshots, folders=folders),
        promoter=promotion,
        bases=Bases(context.resolve, context.hashes, cache=context.models_dir / "hf"),
        folders=folders,
        metrics=metrics,
        rehearsal=Rehearsal(models, folders.bases, system_prompt=settings.model.system_prompt),
        threads=settings.model.threads,
    )


async def _announce(services: Services, say: Callable[[str], None]) -> None:
    address = services.settings.server.url
    say(f"Aprendiz {__version__}: {address}")
    invite = await services.accounts.first_run_invite()
    if invite is not None:
        say(f"There is no admin yet. Become one here (once, within {services.settings.security.invite_hours} hours):")
        say(f"{address}/setup#invite={invite}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@functools.cache
def _default_app() -> FastAPI:
    settings = config.with_secret_key(config.load()).settings
    configure(settings.logging, secrets=config.secrets_in(settings))
    return create_app(settings)


def __getattr__(name: str) -> Any:
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    sys.exit(main())
