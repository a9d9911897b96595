"""The bodies of ``/auth``: bounded, unknown fields refused; what goes out is named field by field."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.core.records import InviteRecord, KeyRecord, SessionRecord, UserRecord
from app.core.types import Role, Scope
from app.security.accounts import Login
from app.security.administration import NewInvite
from app.security.belongings import MAX_KEY_NAME, NewKey

MAX_PASSWORD_SENT = 512
"""Code points of a password in a body; more than 128 are refused with a text that says so."""

ID = Path(min_length=1, max_length=64, description="The id.")
Username = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PASSWORD_SENT)]
_KEY_SCOPES: tuple[Scope, ...] = ("predict", "feedback", "read")
_USER_ID = "01932c07-7b6c-7d2e-9f3a-2b1c0d9e8f7a"


class In(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Out(BaseModel):
    """Base of what goes out."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RegisterBody(In):
    username: Username = Field(description="1 to 64 characters of a-z, 0-9, dot, underscore, hyphen.", examples=["ada"])
    password: Secret = Field(repr=False, description="Up to 128 characters.", examples=["four quiet words help"])
    invite: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        None, repr=False, description="The token of an invite.", examples=["bJ0y…"]
    )


class LoginBody(In):
    username: Username = Field(examples=["ada"])
    password: Secret = Field(repr=False, examples=["four quiet words help"])


class TokenBody(In):
    """As `LoginBody`, with the further fields of the OAuth 2 password grant, which change nothing."""

    username: Username = Field(examples=["ada"])
    password: Secret = Field(repr=False, examples=["four quiet words help"])
    grant_type: Literal["password"] = Field("password", description="As OAuth 2 wants it.")
    scope: Annotated[str, StringConstraints(max_length=256)] = Field("", description="Not used.")
    client_id: Annotated[str, StringConstraints(max_length=256)] = Field("", description="Not used.")
    client_secret: Annotated[str, StringConstraints(max_length=256)] = Field("", repr=False, description="Not used.")


class PasswordBody(In):
    current_password: Secret = Field(repr=False)
    password: Secret = Field(repr=False, description="The new one.")


class KeyBody(In):
    name: Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY_NAME)] = Field(examples=["nightly report"])
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: list(_KEY_SCOPES), description="What the key may do.", examples=[["predict"]]
    )
    expires_in_days: Annotated[int, Field(ge=1, le=3650)] | None = Field(None, description="Life in days; null for no end.")


class InviteBody(In):
    role: Role = Field("user", description="Role of the account that the invite makes.")
    expires_in_hours: Annotated[int, Field(ge=1, le=8760)] | None = Field(None, description="Life in hours; else the setting.")


class UserBody(In):
    role: Role | None = Field(None, description="The new role.")
    disabled: bool | None = Field(None, description="Whether the account is locked.")


class UserOut(Out):
    id: str = Field(examples=[_USER_ID])
    username: str = Field(examples=["ada"])
    role: Role
    created_at: datetime
    last_login_at: datetime | None
    disabled: bool

    @classmethod
    def of(cls, user: UserRecord) -> Self:
        return cls(
            id=user.id,
            username=user.username,
            role=user.role,
            created_at=user.created_at,
            last_login_at=user.last_login_at,
            disabled=user.disabled_at is not None,
        )


class UsersOut(Out):
    users: list[UserOut]
    next: str | None = Field(description="Give this as `after` for the next page; null on the last.")


class LoginOut(Out):
    """Who is logged in. The tokens are in the cookies."""

    user: UserOut
    expires_in: int = Field(description="Seconds until the access cookie has to be renewed.", examples=[900])

    @classmethod
    def of(cls, login: Login) -> Self:
        return cls(user=UserOut.of(login.user), expires_in=login.expires_in_s)


class TokenOut(Out):
    access_token: str = Field(repr=False, examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.…"])
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds.", examples=[43200])


class SessionOut(Out):
    id: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    user_agent: str
    address: str
    current: bool = Field(description="Whether this request belongs to it.")

    @classmethod
    def of(cls, session: SessionRecord, *, current: str | None) -> Self:
        return cls(
            id=session.id,
            created_at=session.created_at,
            last_seen_at=session.last_seen_at,
            expires_at=session.expires_at,
            user_agent=session.user_agent,
            address=session.address,
            current=session.id == current,
        )


class SessionsOut(Out):
    sessions: list[SessionOut]


class KeyOut(Out):
    id: str
    name: str
    prefix: str = Field(description="The key's first characters, to tell keys apart.", examples=["apz_4fJ2k9Qx"])
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: KeyRecord) -> Self:
        return cls.model_validate(key, from_attributes=True)


class NewKeyOut(KeyOut):
    key: str = Field(repr=False, description="The key itself, shown this once.", examples=["apz_…"])

    @classmethod
    def of_new(cls, made: NewKey) -> Self:
        return cls(**KeyOut.of(made.record).model_dump(), key=made.secret)


class KeysOut(Out):
    keys: list[KeyOut]


class InviteOut(Out):
    id: str
    role: Role
    created_at: datetime
    expires_at: datetime
    created_by: str | None

    @classmethod
    def of(cls, invite: InviteRecord) -> Self:
        return cls.model_validate(invite, from_attributes=True)


class NewInviteOut(InviteOut):
    token: str = Field(repr=False, description="The invite itself, shown this once: `/setup#invite=TOKEN`.")

    @classmethod
    def of_new(cls, made: NewInvite) -> Self:
        return cls(**InviteOut.of(made.record).model_dump(), token=made.token)


class InvitesOut(Out):
    invites: list[InviteOut]
