"""The only place that turns credentials into a `Principal`.

A credential may come as ``Authorization: Bearer``, as ``x-api-key`` or as a cookie, with the same outcome on each. It is never
read from a URL, and nothing about a request but its headers is looked at. What a principal may do is decided by the routes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from app.core.errors import AprendizError, Unauthenticated
from app.core.records import KeyRecord, UserRecord
from app.core.settings import Settings
from app.core.types import ALL_SCOPES, Principal, Role, Scope
from app.security.cookies import access_cookies
from app.security.stores import KeyStore, SessionStore, UserStore
from app.security.tokens import MAX_TOKEN, Claims, SessionTokens, TokenKind, hash_secret, is_api_key

CACHE_S: Final = 3.0
"""Seconds for which a look-up holds: the longest time that a change made in another process takes to be felt here."""

_MAX_CACHED = 10_000
_TOUCH_EVERY_S = 60.0
_BAD = "The credential is not valid or has expired. Log in again, or use another API key."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    principal: Principal
    until: float
    """By the monotonic clock."""
    expires_at: float
    """Of the credential itself, seconds since the epoch."""


class Authenticator:
    """Knows who calls.

    Args:
        tokens: reads session tokens.
        settings: tell which cookie names count.
        clock: monotonic seconds, for the cache.
        now: the time of day.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tokens: SessionTokens,
        users: UserStore,
        sessions: SessionStore,
        keys: KeyStore,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cookies = access_cookies(settings)
        self._tokens = tokens
        self._users = users
        self._sessions = sessions
        self._keys = keys
        self._clock = clock
        self._now = now
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[Principal]] = {}
        self._changes = 0
        self._touched: OrderedDict[str, float] = OrderedDict()
        self._touching: set[asyncio.Task[None]] = set()

    async def principal(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal | None:
        """Who sends ``headers`` (names in lower case), or None where they hold no credential at all.

        Raises:
            Unauthenticated: a bad, expired or ended credential, or two different ones.
            StorageUnavailable: it cannot be checked now.
        """
        credential: bytes | None = None
        for found in self._credentials(headers):
            if credential is not None and found != credential:
                raise Unauthenticated("The request carries two different credentials. Send one.")
            credential = found
        if credential is None:
            return None
        if len(credential) > MAX_TOKEN:
            raise Unauthenticated(_BAD)
        # keyed by the hash of the whole credential: prefixes of tokens are alike (CVE-2026-35030)
        presented = credential
        return await self._look_up(hashlib.sha256(presented).digest(), lambda: self._resolve(presented))

    async def still_valid(self, principal: Principal) -> bool:
        """Whether what proved ``principal`` still holds, with the same role: for open streams, asked every few seconds."""
        key = f"session {principal.session_id}" if principal.session_id else f"key {principal.key_id}"
        try:
            now = await self._look_up(key.encode(), lambda: self._renew(principal))
        except Unauthenticated:
            return False
        return now.role == principal.role and now.user_id == principal.user_id and now.scopes >= principal.scopes

    def forget(self, *, user_id: str | None = None, session_id: str | None = None, key_id: str | None = None) -> None:
        """Drops what is remembered about a user, session or key, at once. Called with every change to one of them."""
        self._changes += 1
        self._looking.clear()  # who asks from now on gets an answer from after the change
        stale = [
            digest
            for digest, seen in self._seen.items()
            if (user_id is not None and seen.principal.user_id == user_id)
            or (session_id is not None and seen.principal.session_id == session_id)
            or (key_id is not None and seen.principal.key_id == key_id)
        ]
        for digest in stale:
            del self._seen[digest]

    async def aclose(self) -> None:
        """Waits for what is being asked and for notes of use that are being written."""
        if self._looking:
            await asyncio.wait(set(self._looking.values()), timeout=5)
        if self._touching:
            await asyncio.wait(self._touching, timeout=5)

    def _credentials(self, headers: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """Every credential among ``headers``. Raises Unauthenticated for a form that is none of ours."""
        for name, value in headers:
            if name == b"authorization":
                scheme, _, credential = value.strip().partition(b" ")
                credential = credential.strip()
                if scheme.lower() != b"bearer" or not credential or b" " in credential:
                    raise Unauthenticated("Send the credential as `Authorization: Bearer …`.")
                yield credential
            elif name == b"x-api-key":
                yield value.strip()
            elif name == b"cookie":
                yield from self._cookie_credentials(value)

    def _cookie_credentials(self, line: bytes) -> Iterator[bytes]:
        pairs = [pair.strip().partition(b"=") for pair in line.split(b";")]
        for wanted in self._cookies:
            found = [value.strip() for name, _, value in pairs if name == wanted and value.strip()]
            if found:
                yield from found
                return  # the __Host- cookie, which only we can set, wins over the plain one

    async def _look_up(self, key: bytes, find: Callable[[], Awaitable[tuple[Principal, float]]]) -> Principal:
        seen = self._seen.get(key)
        if seen is not None and self._clock() < seen.until and self._now().timestamp() < seen.expires_at:
            self._note_use(seen.principal)
            return seen.principal
        looking = self._looking.get(key)
        if looking is None:  # one question for all who come while it is asked: under load that is a crowd, every few seconds
            looking = self._looking[key] = asyncio.create_task(self._find(key, find))
            looking.add_done_callback(functools.partial(self._found, key))
        try:
            principal = await asyncio.shield(looking)
        except AprendizError as error:
            raise error.again() from None
        self._note_use(principal)
        return principal

    async def _find(self, key: bytes, find: Callable[[], Awaitable[tuple[Principal, float]]]) -> Principal:
        before = self._changes
        principal, expires_at = await find()
        if before == self._changes:  # else somebody may have been disabled while we looked
            self._seen[key] = _Seen(principal, self._clock() + CACHE_S, expires_at)
            self._seen.move_to_end(key)
            if len(self._seen) > _MAX_CACHED:
                self._seen.popitem(last=False)
        return principal

    def _found(self, key: bytes, looking: asyncio.Task[Principal]) -> None:
        if self._looking.get(key) is looking:
            del self._looking[key]
        if not looking.cancelled():
            looking.exception()  # seen, should all who asked have left

    async def _resolve(self, credential: bytes) -> tuple[Principal, float]:
        try:
            text = credential.decode("ascii")
        except UnicodeDecodeError:
            raise Unauthenticated(_BAD) from None
        if is_api_key(text):
            return await self._of_key(await self._keys.by_hash(hash_secret(text)))
        claims = self._tokens.read(text)
        principal, ends = await self._of_session(claims)
        return principal, min(ends, claims.expires_at)

    async def _renew(self, principal: Principal) -> tuple[Principal, float]:
        if principal.session_id is not None:
            kind: TokenKind = "access" if principal.via == "session" else "bearer"
            return await self._of_session(Claims(principal.user_id, principal.session_id, kind, 0))
        keys = await self._keys.list(principal.user_id)
        return await self._of_key(next((key for key in keys if key.id == principal.key_id), None))

    async def _of_session(self, claims: Claims) -> tuple[Principal, float]:
        session = await self._sessions.get(claims.session_id)
        if session is None or session.user_id != claims.user_id or session.revoked_at or session.expires_at <= self._now():
            raise Unauthenticated(_BAD)
        user = await self._enabled(session.user_id)
        principal = Principal(
            user_id=user.id,
            username=user.username,
            role=user.role,
            scopes=scopes_of(user.role),
            via="session" if claims.kind == "access" else "token",
            session_id=session.id,
        )
        return principal, session.expires_at.timestamp()

    async def _of_key(self, key: KeyRecord | None) -> tuple[Principal, float]:
        if key is None or key.revoked_at or (key.expires_at and key.expires_at <= self._now()):
            raise Unauthenticated(_BAD)
        user = await self._enabled(key.user_id)
        principal = Principal(
            user_id=user.id,
            username=user.username,
            role=user.role,
            scopes=frozenset(key.scopes) & scopes_of(user.role),
            via="key",
            key_id=key.id,
        )
        return principal, (key.expires_at or self._now() + timedelta(days=1)).timestamp()

    async def _enabled(self, user_id: str) -> UserRecord:
        user = await self._users.get(user_id)
        if user is None or user.disabled_at is not None:
            raise Unauthenticated(_BAD)
        return user

    def _note_use(self, principal: Principal) -> None:
        """Writes a key's last use at most once a minute, beside the request: no call waits for that, or fails by it."""
        key_id = principal.key_id
        if key_id is None:
            return
        now = self._clock()
        if now - self._touched.get(key_id, -_TOUCH_EVERY_S) < _TOUCH_EVERY_S:
            return
        self._touched[key_id] = now
        self._touched.move_to_end(key_id)
        if len(self._touched) > _MAX_CACHED:
            self._touched.popitem(last=False)
        task = asyncio.create_task(self._touch(key_id))
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _touch(self, key_id: str) -> None:
        try:
            await self._keys.touch(key_id, now=self._now())
        except AprendizError as error:
            _log.warning("last use of an API key not stored", extra={"data": {"key_id": key_id, "error": type(error).__name__}})


def scopes_of(role: Role) -> frozenset[Scope]:
    """All that a role may do."""
    return frozenset(ALL_SCOPES) if role == "admin" else frozenset(ALL_SCOPES) - {"admin"}
