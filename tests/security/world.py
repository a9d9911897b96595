"""A small service for tests: the real stores on a real SQLite file, the real routes and middleware, a clock that tests turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from app.api import problems
from app.api.deps import Services
from app.api.routers import auth
from app.core.ids import uuid7
from app.core.metrics import Metrics
from app.core.records import UserRecord
from app.core.settings import Settings
from app.core.types import Role
from app.db.audit import Audit
from app.db.database import Database
from app.db.invites import Invites
from app.db.keys import Keys
from app.db.sessions import Sessions
from app.db.users import Users
from app.security.accounts import Accounts
from app.security.auth import Authenticator
from app.security.desk import Desk
from app.security.edge import CrossSiteGuard, RequestBounds, SecurityHeaders, TrustedHost
from app.security.passwords import Argon2idHasher, Hasher, Passwords
from app.security.rate_limit import RateLimiter
from app.security.tokens import SessionTokens
from app.training.erasure import erasure
from app.training.erasure_stores import Live

SECRET = "a-secret-key-for-tests-that-is-long-enough"
PASSWORD = "four quiet words help"
BASE = "https://localhost"


@dataclass
class Clock:
    """The time of day and the monotonic clock, both turned by hand."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    seconds: float = 1000.0

    def now(self) -> datetime:
        return self.at

    def timestamp(self) -> float:
        return self.at.timestamp()

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


class CheapHasher:
    """Argon2id with little memory that counts its work."""

    def __init__(self, *, memory_kib: int = 64) -> None:
        self._real = Argon2idHasher(memory_kib=memory_kib)
        self.verified: list[str] = []
        self.hashed = 0

    def hash(self, password: str) -> str:
        self.hashed += 1
        return self._real.hash(password)

    def verify(self, stored: str, password: str) -> bool:
        self.verified.append(stored)
        return self._real.verify(stored, password)

    def needs_rehash(self, stored: str) -> bool:
        return self._real.needs_rehash(stored)

    def decoy(self) -> str:
        return self._real.decoy()


def settings_with(settings: Settings, **sections: dict[str, Any]) -> Settings:
    """``settings`` with some fields of some sections changed."""
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    return settings.model_copy(update=changed)


class NoAnswers:
    """What the routes of accounts need of the models: somebody's answers are to be forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def forget_answers(self, user_id: str) -> None:
        self.forgotten.append(user_id)

    async def forget_all_answers(self) -> None:
        self.forgotten.append("all")

    async def forget_recollections(self, user_id: str) -> None:
        self.forgotten.append(f"recollections of {user_id}")


class World:
    """All parts, joined as ``app.main`` joins them."""

    def __init__(self, settings: Settings, database: Database, *, hasher: Hasher | None = None) -> None:
        self.settings = settings_with(settings, security={"secret_key": settings.security.secret_key or SecretStr(SECRET)})
        self.clock = Clock()
        self.database = database
        self.users, self.invites, self.sessions = Users(database), Invites(database), Sessions(database)
        self.keys, self.audit = Keys(database), Audit(database)
        self.hasher = hasher or CheapHasher()
        self.passwords = Passwords(self.hasher, workers=2, waiting=200)
        self.tokens = SessionTokens(self.settings.security, now=self.clock.timestamp)
        self.metrics = Metrics()
        self.limiter = RateLimiter(self.settings.rate_limits, clock=self.clock.monotonic)
        self.authenticator = self.another_authenticator()
        self.accounts = Accounts(
            Desk(
                settings=self.settings.security,
                users=self.users,
                invites=self.invites,
                sessions=self.sessions,
                keys=self.keys,
                audit=self.audit,
                passwords=self.passwords,
                tokens=self.tokens,
                authenticator=self.authenticator,
                limiter=self.limiter,
                metrics=self.metrics,
                now=self.clock.now,
            )
        )
        self.models = NoAnswers()
        nothing: Any = None  # nobody here has trained anything
        live = Live(
            nothing,
            nothing,
            self.models,
            lambda user_id: self.authenticator.forget(user_id=user_id),
            self.models.forget_recollections,
        )
        self.erasure = erasure(self.settings, database, live)
        self.app = self._app()

    def another_authenticator(self) -> Authenticator:
        """As another process on the same database has it."""
        return Authenticator(
            self.settings,
            tokens=self.tokens,
            users=self.users,
            sessions=self.sessions,
            keys=self.keys,
            clock=self.clock.monotonic,
            now=self.clock.now,
        )

    def _app(self) -> Any:
        app = FastAPI()
        app.include_router(auth.router)
        problems.register(app, methods_of=lambda path: ())
        parts: dict[str, Any] = dict.fromkeys(Services.__dataclass_fields__)
        for name in parts:
            parts[name] = getattr(self, name, None)
        app.state.services = Services(**parts)
        server = self.settings.server
        edge: Any = CrossSiteGuard(cast("Any", app), server, respond=problems.respond)
        edge = RequestBounds(edge, server, respond=problems.respond)
        edge = TrustedHost(edge, server, respond=problems.respond)
        return SecurityHeaders(problems.Problems(edge), server)

    @asynccontextmanager
    async def client(self, *, base: str = BASE, address: str = "203.0.113.7", **more: Any) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a cookie jar, at ``address``."""
        transport = httpx.ASGITransport(self.app, client=(address, 4321), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base, **more) as client:
            yield client

    async def user(self, name: str = "ada", *, role: Role = "user", disabled: bool = False) -> UserRecord:
        """An account, made directly."""
        record = UserRecord(uuid7(), name, role, await self.passwords.hash(PASSWORD), self.clock.now())
        if disabled:
            record = replace(record, disabled_at=self.clock.now())
        await self.users.create(record)
        return record

    async def bearer(self, name: str = "ada") -> str:
        """A bearer token."""
        begun = await self.accounts.login(name, PASSWORD, kind="bearer", address="203.0.113.7")
        return begun.token

    async def aclose(self) -> None:
        await self.authenticator.aclose()
        self.passwords.close()


def bearer(token: str) -> dict[str, str]:
    """The header."""
    return {"authorization": f"Bearer {token}"}


def raw(**headers: str) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them; underscores become hyphens."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
