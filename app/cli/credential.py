"""Which credential a command shows to the service: one that the person gives, or a short-lived key minted on this machine.

Whoever can write the data directory already owns everything in it, so minting takes nothing that was not there. It never
happens for a service on another machine (``--url``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from app.cli.client import ServiceClient
from app.cli.context import load_config, opened, service_url, user_named
from app.cli.output import say, visible
from app.core.errors import Unauthenticated

if TYPE_CHECKING:
    from app.core.records import UserRecord
    from app.core.settings import Settings
    from app.core.types import Scope
    from app.db.database import Database

KEY_VARIABLE = "APRENDIZ_API_KEY"
_LIFE = timedelta(hours=12)


@contextlib.asynccontextmanager
async def credential(
    settings: Settings, *, key: str | None, user: str, remote: bool, purpose: str, scopes: tuple[Scope, ...]
) -> AsyncIterator[str]:
    """An API key: ``key``, or ``APRENDIZ_API_KEY``, or one minted for ``user`` (or the oldest admin) and revoked on leaving.

    Raises:
        Unauthenticated: no key came and none can be minted; the text says what to do.
    """
    given = key or os.environ.get(KEY_VARIABLE)
    if given:
        yield given
        return
    if remote:
        raise Unauthenticated(f"A service elsewhere needs an API key: pass --key or set {KEY_VARIABLE}.")
    from app.cli.keys import mint
    from app.db.keys import Keys

    async with opened(settings) as database:
        owner = await user_named(database, user) if user else await _operator(database)
        minted, record = await mint(database, owner, name=purpose, scopes=scopes, life=_LIFE)
    say(f"As {visible(owner.username)}, with a key for this run only (--user names another user, --key another key).")
    try:
        yield minted
    finally:
        async with opened(settings) as database:
            await Keys(database).revoke(record.id, now=datetime.now(UTC))


@contextlib.asynccontextmanager
async def connected(
    *, url: str | None, key: str | None, user: str = "", purpose: str, scopes: tuple[Scope, ...]
) -> AsyncIterator[ServiceClient]:
    """A client of the running service that shows a `credential`. None is minted where no service answers."""
    settings = load_config().settings
    address = service_url(settings, url)
    async with ServiceClient(address, None) as stranger:
        await stranger.get("/health/live")
    async with (
        credential(settings, key=key, user=user, remote=url is not None, purpose=purpose, scopes=scopes) as secret,
        ServiceClient(address, secret) as client,
    ):
        yield client


async def _operator(database: Database) -> UserRecord:
    from app.cli.users import every_user

    admins = [user for user in await every_user(database) if user.role == "admin" and user.disabled_at is None]
    if admins:
        return min(admins, key=lambda user: user.created_at)
    raise Unauthenticated(
        "There is no admin account yet. Open the address that the service printed at its first start, or make an invite with"
        " `aprendiz users invite --role admin`."
    )
