"""``aprendiz keys``: API keys, for the operator of this machine. A key is printed once; only its hash is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import typer

from app.cli.context import audit, load_config, opened, run, user_named
from app.cli.output import data, emit_json, public, say, table, visible, when

if TYPE_CHECKING:
    from app.core.records import KeyRecord, UserRecord
    from app.core.types import Scope
    from app.db.database import Database

app = typer.Typer(help="API keys: list, create, revoke.", no_args_is_help=True)


@app.command("list")
def list_keys(
    user: str = typer.Option("", "--user", help="Only this user's keys."),
    everything: bool = typer.Option(False, "--all", help="Also those that are revoked or expired."),
    as_json: bool = typer.Option(False, "--json", help="JSON instead of a table."),
) -> None:
    """List live API keys, without the keys themselves."""

    async def work() -> list[tuple[str, KeyRecord]]:
        from app.cli.users import every_user
        from app.db.keys import Keys

        async with opened(load_config().settings) as database:
            owners = [await user_named(database, user)] if user else await every_user(database)
            return [(owner.username, key) for owner in owners for key in await Keys(database).list(owner.id)]

    found = [(name, key) for name, key in run(work()) if everything or _state(key).startswith("live")]
    if as_json:
        emit_json([{"username": name, **public(key, "key_hash")} for name, key in found])
        return
    rows = (
        (key.id, name, key.name, key.prefix + "…", ",".join(key.scopes), _state(key), when(key.last_used_at))
        for name, key in found
    )
    table(("ID", "USER", "NAME", "KEY", "SCOPES", "STATE", "LAST USED (UTC)"), rows)


@app.command()
def create(
    user: str = typer.Option(..., "--user", help="Whose key it is."),
    name: str = typer.Option(..., "--name", help="What it is for, to tell keys apart."),
    scopes: str = typer.Option("predict,feedback,read", "--scopes", help="What it may do: of predict, feedback, read, admin."),
    days: int | None = typer.Option(None, "--days", min=1, max=3650, help="Days until it expires; without it, never."),
) -> None:
    """Make an API key and print it, alone on stdout. It is shown once."""

    async def work() -> str:
        async with opened(load_config().settings) as database:
            owner = await user_named(database, user)
            life = None if days is None else timedelta(days=days)
            key, _ = await mint(database, owner, name=name, scopes=parse_scopes(scopes), life=life)
            return key

    data(run(work()))
    say("Keep the key safe: only its hash is stored.")


@app.command()
def revoke(key_id: str = typer.Argument(metavar="ID", help="The key's id, as `keys list` shows it.")) -> None:
    """End an API key; a running service stops taking it within seconds."""

    async def work() -> None:
        from app.core.errors import NotFound
        from app.db.keys import Keys

        async with opened(load_config().settings) as database:
            if not await Keys(database).revoke(key_id, now=datetime.now(UTC)):
                raise NotFound(f"There is no live key {visible(key_id)!r}; `aprendiz keys list` shows all.")
            await audit(database, "key.revoke", key_id)

    run(work())
    say("The key is revoked.")


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """``predict,read`` as scopes. Raises InvalidRequest for none and for unknown ones."""
    from app.core.errors import InvalidRequest
    from app.core.types import ALL_SCOPES

    words = {word.strip() for word in text.split(",") if word.strip()}
    if not words or not words <= set(ALL_SCOPES):
        raise InvalidRequest(f"--scopes takes a comma-separated choice of {', '.join(ALL_SCOPES)}.", field="scopes")
    return tuple(scope for scope in ALL_SCOPES if scope in words)


async def mint(
    database: Database, owner: UserRecord, *, name: str, scopes: tuple[Scope, ...], life: timedelta | None
) -> tuple[str, KeyRecord]:
    """A new key of ``owner``, stored: the key itself, and its record. Raises as `app.security.belongings.new_key`."""
    from app.db.keys import Keys
    from app.security.belongings import new_key

    is_admin = owner.role == "admin"
    made = new_key(owner.id, name=name, scopes=scopes, life=life, now=datetime.now(UTC), is_admin=is_admin)
    await Keys(database).create(made.record)
    await audit(database, "key.create", made.record.id, user=owner.id, scopes=list(made.record.scopes))
    return made.secret, made.record


def _state(key: KeyRecord) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "live" if key.expires_at is None else f"live until {when(key.expires_at)}"
