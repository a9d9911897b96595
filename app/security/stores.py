"""What security needs from storage: small protocols that the repositories of ``db`` fit. No code, no storage here.

The two layers are siblings and never import each other; ``main`` hands the repositories over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from app.core.records import UNSET, AuditRecord, InviteRecord, KeyRecord, Rotation, SessionRecord, Unset, UserRecord
from app.core.types import Role


class UserStore(Protocol):
    async def create(self, user: UserRecord) -> None: ...

    async def create_with_invite(self, user: UserRecord, *, token_hash: str, now: datetime) -> UserRecord | None: ...

    async def get(self, user_id: str) -> UserRecord | None: ...

    async def by_name(self, username: str) -> UserRecord | None: ...

    async def list(self, *, limit: int = 100, after: str | None = None) -> Sequence[UserRecord]: ...

    async def update(
        self,
        user_id: str,
        *,
        role: Role | None = None,
        disabled_at: datetime | Unset | None = UNSET,
        password_hash: str | None = None,
        last_login_at: datetime | None = None,
    ) -> UserRecord | None: ...

    async def delete(self, user_id: str) -> bool: ...

    async def count(self, *, role: Role | None = None) -> int: ...


class InviteStore(Protocol):
    async def create(self, invite: InviteRecord) -> None: ...

    async def list(self, *, now: datetime) -> Sequence[InviteRecord]: ...

    async def delete(self, invite_id: str) -> bool: ...

    async def delete_unused_of_role(self, role: Role, *, created_by: None) -> None: ...


class SessionStore(Protocol):
    async def create(self, session: SessionRecord) -> None: ...

    async def get(self, session_id: str) -> SessionRecord | None: ...

    async def list(self, user_id: str, *, now: datetime) -> Sequence[SessionRecord]: ...

    async def rotate(
        self, session_id: str, *, presented_hash: str, new_hash: str, now: datetime, grace_s: float
    ) -> Rotation: ...

    async def revoke(self, session_id: str, *, user_id: str | None = None, now: datetime) -> bool: ...

    async def revoke_user(self, user_id: str, *, except_id: str | None = None, now: datetime) -> int: ...


class KeyStore(Protocol):
    async def create(self, key: KeyRecord) -> None: ...

    async def by_hash(self, key_hash: str) -> KeyRecord | None: ...

    async def list(self, user_id: str) -> Sequence[KeyRecord]: ...

    async def revoke(self, key_id: str, *, user_id: str | None = None, now: datetime) -> bool: ...

    async def touch(self, key_id: str, *, now: datetime) -> None: ...


class AuditStore(Protocol):
    async def add(self, record: AuditRecord) -> None: ...
