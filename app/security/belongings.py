"""What a person sees and ends of their own: sessions and API keys. Another's things are answered like absent ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.core.errors import Conflict, Forbidden, NotFound
from app.core.ids import uuid7
from app.core.records import KeyRecord, SessionRecord
from app.core.text import check_text
from app.core.types import ALL_SCOPES, Principal, Scope
from app.security.desk import Desk
from app.security.tokens import SHOWN_CHARACTERS, hash_secret, new_api_key

MAX_KEYS = 50
"""Live API keys per user."""
MAX_KEY_NAME = 100


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key and, this once, its secret."""

    record: KeyRecord
    secret: str = field(repr=False)


def new_key(
    user_id: str, *, name: str, scopes: Collection[Scope], life: timedelta | None, now: datetime, is_admin: bool
) -> NewKey:
    """A fresh key of a user, not yet stored.

    Raises:
        InvalidRequest: a name that is blank, too long or not text.
        Forbidden: the scope ``admin`` where ``is_admin`` does not hold.
    """
    check_text(name, field="name", limit=MAX_KEY_NAME)
    if "admin" in scopes and not is_admin:
        raise Forbidden("Only an admin can have a key with the scope `admin`.", field="scopes")
    secret = new_api_key()
    record = KeyRecord(
        id=uuid7(),
        user_id=user_id,
        name=name,
        prefix=secret[:SHOWN_CHARACTERS],
        key_hash=hash_secret(secret),
        scopes=tuple(scope for scope in ALL_SCOPES if scope in scopes),
        created_at=now,
        expires_at=None if life is None else now + life,
    )
    return NewKey(record, secret)


class Belongings:
    """One's own sessions and API keys."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list_sessions(self, principal: Principal) -> Sequence[SessionRecord]:
        """The live sessions of the caller, newest first."""
        return await self._desk.sessions.list(principal.user_id, now=self._desk.now())

    async def end_session(self, principal: Principal, session_id: str, *, address: str = "") -> None:
        """Ends one session of the caller at once. Raises NotFound."""
        desk = self._desk
        if not await desk.sessions.revoke(session_id, user_id=principal.user_id, now=desk.now()):
            raise NotFound("There is no such session.")
        desk.authenticator.forget(session_id=session_id)
        await desk.record("session.end", actor=principal.user_id, target=session_id, address=address)

    async def end_other_sessions(self, principal: Principal, *, address: str = "") -> int:
        """Ends all sessions of the caller but the present one; returns how many."""
        desk = self._desk
        ended = await desk.sessions.revoke_user(principal.user_id, except_id=principal.session_id, now=desk.now())
        desk.authenticator.forget(user_id=principal.user_id)
        await desk.record("session.end_others", actor=principal.user_id, target=principal.user_id, address=address, ended=ended)
        return ended

    async def list_keys(self, principal: Principal) -> Sequence[KeyRecord]:
        """The API keys of the caller, newest first, ended ones too."""
        return await self._desk.keys.list(principal.user_id)

    async def create_key(
        self, principal: Principal, *, name: str, scopes: Sequence[Scope], expires_in_days: int | None, address: str = ""
    ) -> NewKey:
        """A new API key; its secret is in the answer and nowhere else.

        Raises:
            InvalidRequest: a name that is blank, too long or not text.
            Forbidden: the scope ``admin`` for somebody who is no admin.
            Conflict: fifty live keys already.
        """
        desk, now = self._desk, self._desk.now()
        life = None if expires_in_days is None else timedelta(days=expires_in_days)
        made = new_key(principal.user_id, name=name, scopes=scopes, life=life, now=now, is_admin=principal.is_admin)
        live = [key for key in await desk.keys.list(principal.user_id) if not key.revoked_at]
        if len(live) >= MAX_KEYS:
            raise Conflict(f"There are {MAX_KEYS} API keys already. Delete one first.")
        record = made.record
        await desk.keys.create(record)
        await desk.record("key.create", actor=principal.user_id, target=record.id, address=address, scopes=list(record.scopes))
        return made

    async def end_key(self, principal: Principal, key_id: str, *, address: str = "") -> None:
        """Ends one API key of the caller at once. Raises NotFound."""
        desk = self._desk
        if not await desk.keys.revoke(key_id, user_id=principal.user_id, now=desk.now()):
            raise NotFound("There is no such API key.")
        desk.authenticator.forget(key_id=key_id)
        await desk.record("key.end", actor=principal.user_id, target=key_id, address=address)
