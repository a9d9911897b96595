"""What admins do with accounts: invites and users. Whether the caller is an admin, the routes have checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.core.errors import Conflict, InvalidRequest, NotFound
from app.core.ids import uuid7
from app.core.records import UNSET, InviteRecord, UserRecord
from app.core.types import Principal, Role
from app.security.desk import Desk
from app.security.tokens import hash_secret, new_invite_token

MAX_INVITES = 1000
"""Open invites at a time."""


@dataclass(frozen=True, slots=True)
class NewInvite:
    """An invite and, this once, its token."""

    record: InviteRecord
    token: str = field(repr=False)


def new_invite(role: Role, *, hours: int, created_by: str | None, now: datetime) -> NewInvite:
    """A fresh invite, not yet stored."""
    token = new_invite_token()
    return NewInvite(InviteRecord(uuid7(), hash_secret(token), role, created_by, now, now + timedelta(hours=hours)), token)


class Administration:
    """Invites and users."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def first_run_invite(self) -> str | None:
        """Where there is no admin yet: a fresh admin invite's token, which replaces those of earlier starts. Else None."""
        desk = self._desk
        if await desk.users.count(role="admin"):
            return None
        await desk.invites.delete_unused_of_role("admin", created_by=None)
        return (await self._invite("admin", hours=None, created_by=None, address="")).token

    async def create_invite(
        self, principal: Principal, *, role: Role, hours: int | None = None, address: str = ""
    ) -> NewInvite:
        """A new invite; its token is in the answer and nowhere else. ``hours``: its life; the setting unless told.

        Raises Conflict where a thousand are open already.
        """
        if len(await self._desk.invites.list(now=self._desk.now())) >= MAX_INVITES:
            raise Conflict(f"There are {MAX_INVITES} open invites. Delete some first.")
        return await self._invite(role, hours=hours, created_by=principal.user_id, address=address)

    async def list_invites(self) -> Sequence[InviteRecord]:
        """The open invites, newest first."""
        return await self._desk.invites.list(now=self._desk.now())

    async def delete_invite(self, principal: Principal, invite_id: str, *, address: str = "") -> None:
        """Withdraws an open invite. Raises NotFound."""
        if not await self._desk.invites.delete(invite_id):
            raise NotFound("There is no such open invite.")
        await self._desk.record("invite.delete", actor=principal.user_id, target=invite_id, address=address)

    async def list_users(self, *, limit: int = 100, after: str | None = None) -> Sequence[UserRecord]:
        """Users, newest first; ``after``: the last id of the page before."""
        return await self._desk.users.list(limit=limit, after=after)

    async def update_user(
        self, principal: Principal, user_id: str, *, role: Role | None = None, disabled: bool | None = None, address: str = ""
    ) -> UserRecord:
        """Changes a user's role, or disables or enables the account. Sessions of a user who is changed end at once.

        Raises:
            InvalidRequest: nothing to change.
            NotFound: no such user.
            Conflict: it would leave no enabled admin.
        """
        desk = self._desk
        if role is None and disabled is None:
            raise InvalidRequest("Send role, disabled or both.")
        before = await desk.users.get(user_id)
        if before is None:
            raise NotFound("There is no such user.")
        disabled_at = UNSET if disabled is None else (before.disabled_at or desk.now()) if disabled else None
        after = await desk.users.update(user_id, role=role, disabled_at=disabled_at)
        if after is None:
            raise NotFound("There is no such user.")
        if after.role != before.role or after.disabled_at is not None:
            await desk.sessions.revoke_user(user_id, now=desk.now())
        desk.authenticator.forget(user_id=user_id)
        await desk.record("user.update", actor=principal.user_id, target=user_id, address=address, role=role, disabled=disabled)
        return after

    async def _invite(self, role: Role, *, hours: int | None, created_by: str | None, address: str) -> NewInvite:
        desk = self._desk
        made = new_invite(role, hours=hours or desk.settings.invite_hours, created_by=created_by, now=desk.now())
        await desk.invites.create(made.record)
        await desk.record("invite.create", actor=created_by, target=made.record.id, address=address, role=role)
        return made
