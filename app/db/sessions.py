"""Logins and the rotation of their refresh tokens. Only hashes are kept; what a token is, ``security`` knows."""

from __future__ import annotations

import builtins
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, or_, select, update

from app.core.records import Rotation, SessionRecord
from app.db.database import Database
from app.db.rows import add, record_of, records_of
from app.db.schema import sessions

_KEPT = timedelta(days=7)
"""A login that has ended stays for so long, for whoever looks into what happened."""


class Sessions:
    """The table ``sessions``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, session: SessionRecord) -> None:
        """Adds a login, and drops those of its user that ended long ago. Raises Conflict as `app.db.rows.add`."""
        long_ago = session.created_at - _KEPT
        ended = or_(sessions.c.expires_at < long_ago, sessions.c.revoked_at < long_ago)
        query = delete(sessions).where(sessions.c.user_id == session.user_id, ended)
        await self._database.write(lambda connection: connection.execute(query))
        await add(self._database, sessions, session)

    async def get(self, session_id: str) -> SessionRecord | None:
        """The login with that id, ended ones too, or None."""
        query = select(sessions).where(sessions.c.id == session_id)
        return await self._database.read(lambda connection: record_of(SessionRecord, connection.execute(query).one_or_none()))

    async def list(self, user_id: str, *, now: datetime) -> builtins.list[SessionRecord]:
        """A user's live logins, newest first."""
        query = select(sessions).where(
            sessions.c.user_id == user_id, sessions.c.revoked_at.is_(None), sessions.c.expires_at > now
        )
        query = query.order_by(sessions.c.id.desc())
        return await self._database.read(lambda connection: records_of(SessionRecord, connection.execute(query)))

    async def rotate(self, session_id: str, *, presented_hash: str, new_hash: str, now: datetime, grace_s: float) -> Rotation:
        """Replaces the refresh token, in one transaction.

        ``rotated``: it was the newest token, and ``new_hash`` is now. ``repeat``: it was the one before, shown again within
        ``grace_s`` (two tabs at once, an answer lost); nothing changed. ``reused``: an older or unknown one; the login ends.
        ``gone``: no such login, or it has ended.
        """
        grace = timedelta(seconds=grace_s)

        def work(connection: Connection) -> Rotation:
            row = connection.execute(select(sessions).where(sessions.c.id == session_id)).one_or_none()
            if row is None or row.revoked_at is not None or row.expires_at <= now:
                return "gone"
            this = update(sessions).where(sessions.c.id == session_id)
            if presented_hash == row.refresh_hash:
                moved = this.values(
                    refresh_hash=new_hash, previous_refresh_hash=presented_hash, rotated_at=now, last_seen_at=now
                )
                connection.execute(moved)
                return "rotated"
            if presented_hash == row.previous_refresh_hash and row.rotated_at is not None and now - row.rotated_at <= grace:
                return "repeat"
            connection.execute(this.values(revoked_at=now))
            return "reused"

        return await self._database.write(work)

    async def revoke(self, session_id: str, *, user_id: str | None = None, now: datetime) -> bool:
        """Ends a login (``user_id``: only if it is that user's). Returns whether it was live."""
        query = update(sessions).where(sessions.c.id == session_id, sessions.c.revoked_at.is_(None)).values(revoked_at=now)
        if user_id is not None:
            query = query.where(sessions.c.user_id == user_id)
        return await self._database.write(lambda connection: connection.execute(query).rowcount > 0)

    async def revoke_user(self, user_id: str, *, except_id: str | None = None, now: datetime) -> int:
        """Ends all logins of a user (but ``except_id``). Returns how many were live."""
        query = update(sessions).where(sessions.c.user_id == user_id, sessions.c.revoked_at.is_(None)).values(revoked_at=now)
        if except_id is not None:
            query = query.where(sessions.c.id != except_id)
        return await self._database.write(lambda connection: connection.execute(query).rowcount)
