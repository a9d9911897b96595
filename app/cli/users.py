"""``aprendiz users``: accounts, for the operator of this machine. Works on the database; whoever can write it needs no login.

Every change is written to the audit log, without an actor and with ``via: command line``.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from app.cli.context import audit, load_config, opened, run, user_named
from app.cli.output import EXIT_USAGE, confirm, data, emit_json, public, say, table, visible, when
from app.core.types import Role  # not lazily: Typer reads the annotations

if TYPE_CHECKING:
    from app.core.records import UserRecord
    from app.db.database import Database
    from app.training.erasure_stores import ErasureReport

app = typer.Typer(help="Accounts: list, invite, disable, erase.", no_args_is_help=True)

_PAGE = 500


@app.command("list")
def list_users(as_json: bool = typer.Option(False, "--json", help="JSON instead of a table.")) -> None:
    """List all accounts."""

    async def work() -> list[UserRecord]:
        async with opened(load_config().settings) as database:
            return await every_user(database)

    records = run(work())
    if as_json:
        emit_json([public(record, "password_hash") for record in records])
        return
    rows = (
        (
            user.username,
            user.role,
            "disabled" if user.disabled_at else "active",
            when(user.created_at),
            when(user.last_login_at),
        )
        for user in records
    )
    table(("NAME", "ROLE", "STATE", "CREATED (UTC)", "LAST LOGIN"), rows)


@app.command()
def invite(
    role: Role = typer.Option("user", "--role", help="What the new account may do."),
    hours: int | None = typer.Option(
        None, "--hours", min=1, max=8760, help="Life of the invite; setting security.invite_hours."
    ),
) -> None:
    """Make an invite and print its token, alone on stdout. It is shown once and works once."""
    from app.db.invites import Invites
    from app.security.administration import new_invite

    settings = load_config().settings
    made = new_invite(role, hours=hours or settings.security.invite_hours, created_by=None, now=datetime.now(UTC))

    async def work() -> None:
        async with opened(settings) as database:
            await Invites(database).create(made.record)
            await audit(database, "invite.create", made.record.id, role=role)

    run(work())
    data(made.token)
    until = when(made.record.expires_at)
    say(f"One-time invite for a new {role}, good until {until} UTC. As a link: {settings.server.url}/setup#invite=TOKEN")


@app.command()
def disable(name: str = typer.Argument(help="The user.")) -> None:
    """Lock an account: its sessions end and its keys stop working, within seconds."""
    _set_disabled(name, datetime.now(UTC))


@app.command()
def enable(name: str = typer.Argument(help="The user.")) -> None:
    """Unlock a disabled account."""
    _set_disabled(name, None)


@app.command("role")
def set_role(name: str = typer.Argument(help="The user."), role: Role = typer.Argument(help="admin or user.")) -> None:
    """Make a user an admin, or an admin a user."""

    async def work() -> None:
        from app.db.users import Users

        async with opened(load_config().settings) as database:
            user = await user_named(database, name)
            await Users(database).update(user.id, role=role)
            await audit(database, "user.role", user.id, role=role)

    run(work())
    say(f"{visible(name)} is now {role}.")


@app.command("password")
def set_password(name: str = typer.Argument(help="The user.")) -> None:
    """Set a new password, read from the terminal or from stdin; ends all of the user's sessions."""
    settings = load_config().settings
    if sys.stdin.isatty():
        password = typer.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        say("No password came on stdin.")
        raise typer.Exit(EXIT_USAGE)

    async def work() -> int:
        from app.db.sessions import Sessions
        from app.db.users import Users
        from app.security.passwords import Passwords, check_new_password

        async with opened(settings) as database:
            user = await user_named(database, name)
            check_new_password(password, username=user.username)
            passwords = Passwords(workers=1)
            try:
                hashed = await passwords.hash(password)
            finally:
                passwords.close()
            await Users(database).update(user.id, password_hash=hashed)
            ended = await Sessions(database).revoke_user(user.id, now=datetime.now(UTC))
            await audit(database, "user.password", user.id)
            return ended

    ended = run(work())
    say(f"The password of {visible(name)} is changed; {ended} session(s) ended.")


@app.command()
def delete(
    name: str = typer.Argument(help="The user."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Delete an account with all its sessions, keys, conversations, predictions and feedback; the same as `erase`."""
    erase(name, yes=yes, delete_backups=False, as_json=False)


@app.command()
def erase(
    name: str = typer.Argument(help="The user, or the id of one whose erasure was cut off."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    delete_backups: bool = typer.Option(False, "--delete-backups", help="Also delete our backups of the database."),
    as_json: bool = typer.Option(False, "--json", help="The report as JSON."),
) -> None:
    """Erase a person: the account, all that is its own, and every adapter that was trained on it. A running service, or the
    next one to start, takes the last steps by itself."""
    from app.core.errors import NotFound
    from app.training.erasure import erasure

    settings = load_config().settings

    async def work() -> ErasureReport:
        async with opened(settings) as database:
            try:
                user = await user_named(database, name)
                user_id, shown = user.id, user.username
            except NotFound:
                if not (settings.data_dir / "erasures" / f"{Path(name).name}.json").exists():
                    raise
                user_id = shown = name
            confirm(f"Erase {visible(shown)} and everything that belongs to them, for good?", yes=yes)
            return await erasure(settings, database, None).erase(user_id, actor=None, delete_backups=delete_backups)

    report = run(work())
    if as_json:
        emit_json(asdict(report))
        return
    say(f"{visible(name)} is deleted.")
    counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in report.counts.items())
    say(f"Gone: {counts}; {len(report.snapshots)} snapshots, {len(report.runs)} runs and their adapters.")
    if report.backups:
        say(f"These backups still hold the person; delete them when you can: {', '.join(map(visible, report.backups))}")
    if report.retrain is not None:
        say("What others taught those versions can be learned again: `aprendiz train run --promote if_passed`.")


async def every_user(database: Database) -> list[UserRecord]:
    """All users, newest first."""
    from app.db.users import Users

    found: list[UserRecord] = []
    while True:
        page = await Users(database).list(limit=_PAGE, after=found[-1].id if found else None)
        found += page
        if len(page) < _PAGE:
            return found


def _set_disabled(name: str, moment: datetime | None) -> None:
    async def work() -> None:
        from app.db.sessions import Sessions
        from app.db.users import Users

        async with opened(load_config().settings) as database:
            user = await user_named(database, name)
            await Users(database).update(user.id, disabled_at=moment)
            if moment is not None:
                await Sessions(database).revoke_user(user.id, now=moment)
            await audit(database, "user.disable" if moment else "user.enable", user.id)

    run(work())
    say(f"{visible(name)} is {'disabled' if moment else 'enabled'}.")
