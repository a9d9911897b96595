"""Accounts: register, log in, stay logged in, log out, change the password; with one's sessions and keys, and the admin's side.

Knows nothing of HTTP. Whether a name exists can be learned neither from an answer nor from the time it takes; the one exception
is registering, where a taken name has to be refused, and there only holders of an invite can ask (unless registration is open).
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass, field
from datetime import timedelta

from app.core.errors import Forbidden, InvalidRequest, NotFound, TooManyRequests, Unauthenticated
from app.core.ids import uuid7
from app.core.records import SessionRecord, UserRecord
from app.core.types import Principal
from app.security.administration import Administration
from app.security.belongings import Belongings
from app.security.passwords import check_new_password, check_username, fold_username
from app.security.tokens import TokenKind, hash_secret, new_refresh_token, session_of_refresh_token

BEARER_HOURS = 12
"""Life of a program's bearer token and its session. Longer-lived programs use API keys."""
GRACE_S = 10.0
"""Seconds for which the immediate predecessor of a refresh token still gets an access token: two tabs, a lost answer."""
IDLE_DAYS = 14
"""A browser's session that was not renewed for so long ends, before its absolute life is over."""
MAX_SESSIONS = 50
"""Live sessions per user; a login beyond ends the oldest."""

_WRONG = "The user name or the password is wrong."
_ENDED = "The session has ended. Log in again."
_NO_INVITE = "Registering needs an invite that is unused and not expired. Ask an admin for one."
_MAX_AGENT = 200
_ACCESS_TOKEN_S = 900
"""Life of a browser's access token; its refresh token makes the next one."""


@dataclass(frozen=True, slots=True)
class Login:
    """A session that was begun or renewed, with its tokens.

    ``expires_in_s``: life of ``token``. ``refresh_token`` is None for programs, and where it was not rotated.
    ``refresh_in_s``: life that the session has left.
    """

    user: UserRecord
    session_id: str
    token: str = field(repr=False)
    expires_in_s: int
    refresh_token: str | None = field(default=None, repr=False)
    refresh_in_s: int = 0


class Accounts(Belongings, Administration):
    """The way in, and all that people and admins do with accounts."""

    async def register(self, username: str, password: str, invite: str | None, *, address: str) -> UserRecord:
        """Makes an account, with the invite's role, or as a user where registration is open and no invite is given.

        Raises:
            InvalidRequest: the name or the password does not do.
            Forbidden: no good invite where one is needed, or a bad one.
            Conflict: the name is taken. Only said to holders of a good invite.
            TooManyRequests, Overloaded: too many at once.
        """
        desk = self._desk
        await desk.limiter.check("login_address", address)
        name = check_username(username)
        check_new_password(password, username=name)
        if invite is None and desk.settings.registration != "open":
            raise Forbidden(_NO_INVITE, field="invite")
        token_hash = None if invite is None else await self._open_invite(invite, address)
        password_hash = await desk.passwords.hash(password)
        user = UserRecord(uuid7(), name, "user", password_hash, desk.now())
        if token_hash is None:
            await desk.users.create(user)
        else:
            created = await desk.users.create_with_invite(user, token_hash=token_hash, now=desk.now())
            if created is None:  # used up by somebody else in the meantime
                raise self._refused_invite(address)
            user = created
        await desk.record("user.register", actor=user.id, target=user.id, address=address, role=user.role)
        return user

    async def login(
        self, username: str, password: str, *, kind: TokenKind, address: str, user_agent: str = "", replaces: str | None = None
    ) -> Login:
        """Begins a session: for a browser (``access``, with a refresh token) or a program (``bearer``).

        Args:
            replaces: a refresh token that came along; its session ends.

        Raises:
            Unauthenticated: wrong name or password, or a disabled account: never told apart.
            TooManyRequests, Overloaded: too many failures, or too many at once.
        """
        desk = self._desk
        user = await self._prove(username, password, address)
        if replaces is not None:
            await self._end_by_refresh_token(replaces)
        await self._end_oldest(user.id)
        now = desk.now()
        life = timedelta(hours=BEARER_HOURS) if kind == "bearer" else timedelta(days=desk.settings.session_days)
        session_id = uuid7(now_ms=int(now.timestamp() * 1000))
        refresh = new_refresh_token(session_id)
        session = SessionRecord(
            id=session_id,
            user_id=user.id,
            created_at=now,
            last_seen_at=now,
            expires_at=now + life,
            refresh_hash=hash_secret(refresh),
            user_agent="".join(char for char in user_agent if char.isprintable())[:_MAX_AGENT],
            address=address,
        )
        await desk.sessions.create(session)
        await self._still_the_same(user, session_id)
        await desk.record("session.begin", actor=user.id, target=session_id, address=address, kind=kind)
        return self._tokens(user, session, kind=kind, refresh=refresh if kind == "access" else None)

    async def refresh(self, refresh_token: str, *, address: str) -> Login:
        """A fresh access token and, unless the token is the one just replaced, a fresh refresh token.

        Raises:
            Unauthenticated: not a good token, or its session has ended. An old token shown again ends its session.
        """
        desk, now = self._desk, self._desk.now()
        session_id = session_of_refresh_token(refresh_token)
        session = None if session_id is None else await desk.sessions.get(session_id)
        user = None if session is None else await desk.users.get(session.user_id)
        if session is None or user is None or user.disabled_at is not None:
            raise self._refused_refresh(address, "unknown")
        if now - session.last_seen_at > timedelta(days=IDLE_DAYS):
            await desk.sessions.revoke(session.id, now=now)
            raise self._refused_refresh(address, "idle", session_id=session.id)
        fresh = new_refresh_token(session.id)
        outcome = await desk.sessions.rotate(
            session.id, presented_hash=hash_secret(refresh_token), new_hash=hash_secret(fresh), now=now, grace_s=GRACE_S
        )
        if outcome == "reused":
            desk.authenticator.forget(session_id=session.id)
            await desk.record("session.reuse", actor=user.id, target=session.id, address=address)
        if outcome not in ("rotated", "repeat"):
            raise self._refused_refresh(address, outcome, session_id=session.id)
        desk.note("session.refresh", user_id=user.id, session_id=session.id, address=address, outcome=outcome)
        return self._tokens(user, session, kind="access", refresh=fresh if outcome == "rotated" else None)

    async def logout(self, principal: Principal | None, refresh_token: str | None, *, address: str) -> None:
        """Ends the session of the caller and that of the refresh token, at once. Without either there is nothing to end."""
        desk = self._desk
        if principal is not None and principal.session_id is not None:
            await desk.sessions.revoke(principal.session_id, now=desk.now())
            desk.authenticator.forget(session_id=principal.session_id)
            await desk.record("session.end", actor=principal.user_id, target=principal.session_id, address=address)
        if refresh_token is not None:
            await self._end_by_refresh_token(refresh_token)

    async def change_password(self, principal: Principal, current: str, new: str, *, address: str) -> None:
        """Sets a new password and ends all other sessions.

        Raises:
            Forbidden: ``current`` is wrong.
            InvalidRequest: ``new`` does not do.
            TooManyRequests, Overloaded: too many failures, or too many at once.
        """
        desk = self._desk
        user = await self.me(principal)
        check_new_password(new, username=user.username)
        if hmac.compare_digest(current.encode("utf-8", "surrogatepass"), new.encode("utf-8", "surrogatepass")):
            raise InvalidRequest("The new password is the current one.", field="password")
        try:
            await self._prove(user.username, current, address)
        except Unauthenticated:
            raise Forbidden("The current password is wrong.", field="current_password") from None
        await desk.users.update(user.id, password_hash=await desk.passwords.hash(new))
        ended = await desk.sessions.revoke_user(user.id, except_id=principal.session_id, now=desk.now())
        desk.authenticator.forget(user_id=user.id)
        await desk.record("user.password", actor=user.id, target=user.id, address=address, ended_sessions=ended)

    async def me(self, principal: Principal) -> UserRecord:
        """The caller's account. Raises NotFound where it was just deleted."""
        user = await self._desk.users.get(principal.user_id)
        if user is None:
            raise NotFound("There is no such user.")
        return user

    async def _prove(self, username: str, password: str, address: str) -> UserRecord:
        """The user whose password this is. One look-up and one hash for every outcome, so that time tells nothing."""
        desk = self._desk
        name = fold_username(username)
        account = name or hash_secret(username)
        try:
            async with desk.limiter.login_attempt(account, address):
                user = await desk.users.by_name(name or "")
                verdict = await desk.passwords.verify(password, user.password_hash if user else None)
                if user is None or not verdict.ok or user.disabled_at is not None:
                    reason = "unknown" if user is None else "password" if not verdict.ok else "disabled"
                    user_id = user.id if user else None
                    desk.note("login failed", level=logging.WARNING, reason=reason, user_id=user_id, address=address)
                    raise Unauthenticated(_WRONG)
        except Unauthenticated:
            desk.count_login("failed")
            raise
        except TooManyRequests:
            desk.count_login("refused")
            desk.note("login refused: too many failures", level=logging.WARNING, address=address)
            raise
        desk.count_login("ok")
        changes = await desk.passwords.hash(password) if verdict.rehash else None
        current = await desk.users.get(user.id)
        if current is None or current.password_hash != user.password_hash:
            raise Unauthenticated(_WRONG)  # changed while we hashed
        return await desk.users.update(user.id, last_login_at=desk.now(), password_hash=changes) or user

    async def _still_the_same(self, user: UserRecord, session_id: str) -> None:
        """Ends a session that was begun while the account was disabled, deleted or given another password."""
        desk = self._desk
        now = await desk.users.get(user.id)
        if now is None or now.disabled_at is not None or now.password_hash != user.password_hash:
            await desk.sessions.revoke(session_id, now=desk.now())
            raise Unauthenticated(_WRONG)

    async def _end_oldest(self, user_id: str) -> None:
        desk = self._desk
        for session in list(await desk.sessions.list(user_id, now=desk.now()))[MAX_SESSIONS - 1 :]:
            await desk.sessions.revoke(session.id, now=desk.now())
            desk.authenticator.forget(session_id=session.id)

    async def _end_by_refresh_token(self, refresh_token: str) -> None:
        """Ends a session if the token is its newest or the one before; anybody can know a session's id."""
        desk = self._desk
        session_id = session_of_refresh_token(refresh_token)
        session = None if session_id is None else await desk.sessions.get(session_id)
        if session is None or hash_secret(refresh_token) not in (session.refresh_hash, session.previous_refresh_hash):
            return
        if await desk.sessions.revoke(session.id, now=desk.now()):
            desk.authenticator.forget(session_id=session.id)
            await desk.record("session.end", actor=session.user_id, target=session.id, address=session.address)

    async def _open_invite(self, invite: str, address: str) -> str:
        """The hash of a good invite; looked up before any hashing of passwords, so that guessing costs us nothing."""
        token_hash = hash_secret(invite)
        if all(record.token_hash != token_hash for record in await self._desk.invites.list(now=self._desk.now())):
            raise self._refused_invite(address)
        return token_hash

    def _refused_invite(self, address: str) -> Forbidden:
        self._desk.note("registration refused: no good invite", level=logging.WARNING, address=address)
        return Forbidden(_NO_INVITE, field="invite")

    def _refused_refresh(self, address: str, reason: str, **data: str) -> Unauthenticated:
        self._desk.note("refresh refused", level=logging.WARNING, reason=reason, address=address, **data)
        return Unauthenticated(_ENDED)

    def _tokens(self, user: UserRecord, session: SessionRecord, *, kind: TokenKind, refresh: str | None) -> Login:
        left = _seconds(session.expires_at - self._desk.now())
        life = left if kind == "bearer" else min(left, _ACCESS_TOKEN_S)
        token = self._desk.tokens.sign(user_id=user.id, session_id=session.id, kind=kind, lifetime_s=life)
        return Login(user, session.id, token, life, refresh, left)


def _seconds(span: timedelta) -> int:
    return max(0, int(span.total_seconds()))
