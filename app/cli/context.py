"""What most commands need: the configuration, and the database with its repositories, opened beside a running service.

Also the one place that turns the command line's overrides into settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from app.core.config import Config
    from app.core.records import UserRecord
    from app.core.settings import Settings
    from app.db.database import Database

T = TypeVar("T")


def load_config(*, host: str | None = None, port: int | None = None) -> Config:
    """The configuration, with what the command line overrides; its origin is then ``command line``.

    Raises:
        ConfigurationError: see `app.core.config.load`; also a host or port that the settings refuse.
    """
    from pydantic import ValidationError

    from app.core import config
    from app.core.errors import ConfigurationError

    loaded = config.load()
    overrides = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if not overrides:
        return loaded
    try:
        server = type(loaded.settings.server).model_validate({**loaded.settings.server.model_dump(), **overrides})
    except ValidationError as error:
        raise ConfigurationError("; ".join(f"--{item['loc'][0]}: {item['msg']}" for item in error.errors())) from None
    origins = {**loaded.origins, **{f"server.{key}": "command line" for key in overrides}}
    return replace(loaded, settings=loaded.settings.model_copy(update={"server": server}), origins=origins)


def quiet_logs() -> None:
    """Logs of the parts that a command uses: warnings and worse, as plain lines on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs one command's coroutine to its end."""
    quiet_logs()
    return asyncio.run(work)


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database, migrated and open; closed on leaving."""
    from app.db.database import open_database

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = open_database(settings)
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


async def user_named(database: Database, name: str) -> UserRecord:
    """The user of that name or id. Raises NotFound."""
    from app.core.errors import NotFound
    from app.db.users import Users

    users = Users(database)
    user = await users.by_name(name) or await users.get(name)
    if user is None:
        raise NotFound(f"There is no user {name!r}; `aprendiz users list` shows all.")
    return user


def service_url(settings: Settings, url: str | None) -> str:
    """Where the running service listens: ``--url``, or this machine at the configured port."""
    return url.rstrip("/") if url else settings.server.local_url


async def audit(database: Database, action: str, target: str, **details: object) -> None:
    """One line in the audit log. No account acts here, so the actor is None and ``via`` says where it came from."""
    from datetime import UTC, datetime

    from app.core.ids import uuid7
    from app.core.records import AuditRecord
    from app.db.audit import Audit

    await Audit(database).add(AuditRecord(uuid7(), datetime.now(UTC), None, action, target, {**details, "via": "command line"}))
