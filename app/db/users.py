"""Accounts. User names are unique without regard to case; the last enabled admin cannot be demoted, disabled or deleted."""

from __future__ import annotations

import builtins
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from app.core.errors import Conflict
from app.core.records import UNSET, Unset, UserRecord
from app.core.text import fold_name
from app.core.types import Role
from app.db import partitions
from app.db.database import Database
from app.db.erased import forget_owner, note_costs
from app.db.rows import make, record_of, records_of, values_of
from app.db.schema import invites, predictions, users


class Users:
    """The table ``users``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user: UserRecord) -> None:
        """Adds an account. Raises Conflict where the name (or the id) is taken."""
        await self._database.write(lambda connection: _insert(connection, user))

    async def create_with_invite(self, user: UserRecord, *, token_hash: str, now: datetime) -> UserRecord | None:
        """Uses up the invite and adds the account with the invite's role, in one transaction.

        Returns the account, or None where no unused, unexpired invite has that hash. Raises Conflict where the name is taken;
        the invite then stays good.
        """

        def work(connection: Connection) -> UserRecord | None:
            found = select(invites.c.id, invites.c.role).where(
                invites.c.token_hash == token_hash, invites.c.used_at.is_(None), invites.c.expires_at > now
            )
            invite = connection.execute(found).one_or_none()
            if invite is None:
                return None
            created = replace(user, role=invite.role)
            _insert(connection, created)
            connection.execute(update(invites).where(invites.c.id == invite.id).values(used_at=now, used_by=user.id))
            return created

        return await self._database.write(work)

    async def get(self, user_id: str) -> UserRecord | None:
        """The account with that id, or None."""
        query = select(users).where(users.c.id == user_id)
        return await self._database.read(lambda connection: record_of(UserRecord, connection.execute(query).one_or_none()))

    async def by_name(self, username: str) -> UserRecord | None:
        """The account with that name in any case, or None."""
        query = select(users).where(users.c.username_key == fold_name(username))
        return await self._database.read(lambda connection: record_of(UserRecord, connection.execute(query).one_or_none()))

    async def list(self, *, limit: int = 100, after: str | None = None) -> builtins.list[UserRecord]:
        """Accounts, newest first; ``after``: the last id of the page before."""
        query = select(users).order_by(users.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(users.c.id < after)
        return await self._database.read(lambda connection: records_of(UserRecord, connection.execute(query)))

    async def update(
        self,
        user_id: str,
        *,
        role: Role | None = None,
        disabled_at: datetime | Unset | None = UNSET,
        password_hash: str | None = None,
        last_login_at: datetime | None = None,
    ) -> UserRecord | None:
        """Changes what is given and returns the account as it is then, or None where there is none.

        Raises Conflict where it would leave no enabled admin.
        """
        given = {"role": role, "password_hash": password_hash, "last_login_at": last_login_at}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if disabled_at is not UNSET:
            changes["disabled_at"] = disabled_at

        def work(connection: Connection) -> UserRecord | None:
            row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
            if row is None:
                return None
            after = make(UserRecord, {**row._mapping, **changes})
            if after.role != "admin" or after.disabled_at is not None:
                _keep_an_admin(connection, row)
            if changes:
                connection.execute(update(users).where(users.c.id == user_id).values(changes))
            return after

        return await self._database.write(work)

    async def delete(self, user_id: str) -> bool:
        """Removes the account with its sessions, keys, conversations, predictions, the feedback it gave and the feedback on its
        predictions. Returns whether there was one. Raises Conflict for the last enabled admin."""

        def work(connection: Connection) -> bool:
            row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
            if row is None:
                return False
            _keep_an_admin(connection, row)
            note_costs(connection, predictions.c.user_id == user_id, anonymous=True)
            forget_owner(connection, user_id)
            partitions.forget(connection, user_id)
            connection.execute(delete(users).where(users.c.id == user_id))  # the rest goes by ON DELETE CASCADE
            return True

        return await self._database.write(work)

    async def count(self, *, role: Role | None = None) -> int:
        """How many accounts there are, disabled ones included; ``role``: of that role."""
        query = select(func.count()).select_from(users)
        if role is not None:
            query = query.where(users.c.role == role)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())


def _insert(connection: Connection, user: UserRecord) -> None:
    key = fold_name(user.username)
    # Looked up first, not caught afterwards: after an error PostgreSQL lets nothing more happen in the transaction.
    if (
        connection.execute(select(users.c.id).where((users.c.username_key == key) | (users.c.id == user.id))).first()
        is not None
    ):
        raise Conflict("That user name is taken; choose another.", field="username")
    connection.execute(insert(users).values(values_of(user, username_key=key)))


def _keep_an_admin(connection: Connection, row: Row[Any]) -> None:
    """Raises Conflict where ``row`` is the only enabled admin."""
    if row.role != "admin" or row.disabled_at is not None:
        return
    others = select(func.count()).select_from(users)
    others = others.where(users.c.role == "admin", users.c.disabled_at.is_(None), users.c.id != row.id)
    if connection.execute(others).scalar_one() == 0:
        raise Conflict("This is the last enabled admin. Make another account an admin first.")
