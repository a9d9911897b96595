"""``/auth``: registration, sessions, tokens, keys, invites, users. HTTP words only; what they do is `app.security.accounts`'.

Browsers get tokens in cookies and never in a body; programs get one in a body and no cookie. Whatever changes an account needs
a person's login: an API key is refused.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import HTTPConnection

from app.api.bodies import StrictRoute, decode_any
from app.api.deps import (
    ClientAddress,
    PersonPrincipal,
    ReadPrincipal,
    Services,
    ServicesDep,
    admin_principal,
    get_services,
    optional_principal,
    person_principal,
)
from app.api.routers.auth_bodies import (
    ID,
    InviteBody,
    InviteOut,
    InvitesOut,
    KeyBody,
    KeyOut,
    KeysOut,
    LoginBody,
    LoginOut,
    NewInviteOut,
    NewKeyOut,
    PasswordBody,
    RegisterBody,
    SessionOut,
    SessionsOut,
    TokenBody,
    TokenOut,
    UserBody,
    UserOut,
    UsersOut,
)
from app.core.errors import InvalidRequest, Unauthenticated, UnsupportedMediaType
from app.core.types import Principal
from app.security.accounts import Login
from app.security.cookies import clear_cookies, over_tls, refresh_token, set_cookie
from app.security.edge import refuse_cross_site

router = APIRouter(prefix="/auth", tags=["auth"], route_class=StrictRoute)

_FORM: Final = "application/x-www-form-urlencoded"


async def own_site(connection: HTTPConnection) -> None:
    """Refuses what a page of another web site sends, with or without a cookie: nobody is logged in or out behind their back."""
    refuse_cross_site(connection.scope, get_services(connection).settings.server)


async def admin_person(
    principal: Annotated[Principal, Depends(person_principal)], _: Annotated[Principal, Depends(admin_principal)]
) -> Principal:
    """An admin who is logged in."""
    return principal


OwnSite = Depends(own_site)
AdminPerson = Annotated[Principal, Depends(admin_person)]
Id = Annotated[str, ID]


@router.post("/register", status_code=201, dependencies=[OwnSite], summary="Make an account")
async def register(body: RegisterBody, services: ServicesDep, address: ClientAddress) -> UserOut:
    """Makes an account with an invite, or without one where registration is open. Log in afterwards.

    User names are case-insensitive. A password has 12 characters or more (a setting), of any kind.
    """
    user = await services.accounts.register(body.username, body.password, body.invite, address=address)
    return UserOut.of(user)


@router.post("/login", dependencies=[OwnSite], summary="Log in (browsers)")
async def login(
    body: LoginBody, request: Request, response: Response, services: ServicesDep, address: ClientAddress
) -> LoginOut:
    """Begins a session. The tokens come as cookies only: a short-lived access token and a rotating refresh token.

    A session whose cookies came along ends.
    """
    begun = await services.accounts.login(
        body.username,
        body.password,
        kind="access",
        address=address,
        user_agent=request.headers.get("user-agent", ""),
        replaces=_refresh_token(request, services),
    )
    _set_cookies(request, response, services, begun)
    return LoginOut.of(begun)


@router.post(
    "/token",
    summary="Log in (programs)",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": TokenBody.model_json_schema()},
                _FORM: {"schema": TokenBody.model_json_schema()},
            },
        }
    },
)
async def token(request: Request, services: ServicesDep, address: ClientAddress) -> TokenOut:
    """Begins a session and gives its bearer token in the body, good for twelve hours. No cookie is set.

    Takes JSON, or the form of the OAuth 2 password grant. Programs that run for longer use an API key.
    """
    body = await _token_body(request)
    agent = request.headers.get("user-agent", "")
    begun = await services.accounts.login(body.username, body.password, kind="bearer", address=address, user_agent=agent)
    return TokenOut(access_token=begun.token, token_type="bearer", expires_in=begun.expires_in_s)  # noqa: S106


@router.post("/refresh", dependencies=[OwnSite], summary="Renew the session's cookies")
async def refresh(request: Request, response: Response, services: ServicesDep, address: ClientAddress) -> LoginOut:
    """Gives a fresh access cookie for the refresh cookie, and a fresh refresh cookie with it.

    A refresh token is good once. Its immediate predecessor still gets an access cookie for ten seconds; an older one shown
    again ends the session.
    """
    presented = _refresh_token(request, services)
    if presented is None:
        raise Unauthenticated("There is no refresh cookie. Log in.")
    renewed = await services.accounts.refresh(presented, address=address)
    _set_cookies(request, response, services, renewed)
    return LoginOut.of(renewed)


@router.post("/logout", status_code=204, dependencies=[OwnSite], summary="Log out")
async def logout(request: Request, services: ServicesDep, address: ClientAddress) -> Response:
    """Ends the session of the cookies or of the bearer token at once, and clears the cookies. May be called twice."""
    try:
        principal = await optional_principal(request)
    except Unauthenticated:
        principal = None  # already ended, or expired: the refresh token may still be good
    await services.accounts.logout(principal, _refresh_token(request, services), address=address)
    response = Response(status_code=204)
    for line in clear_cookies(tls=over_tls(request.scope, services.settings), settings=services.settings):
        response.headers.append("set-cookie", line)
    return response


@router.get("/me", summary="Who am I")
async def me(principal: ReadPrincipal, services: ServicesDep) -> UserOut:
    """The account behind the credential. An API key needs the scope `read`."""
    return UserOut.of(await services.accounts.me(principal))


@router.post("/password", status_code=204, summary="Change the password")
async def change_password(
    body: PasswordBody, principal: PersonPrincipal, services: ServicesDep, address: ClientAddress
) -> Response:
    """Sets a new password, given the current one, and ends all other sessions."""
    await services.accounts.change_password(principal, body.current_password, body.password, address=address)
    return Response(status_code=204)


@router.get("/sessions", summary="List my sessions")
async def list_sessions(principal: PersonPrincipal, services: ServicesDep) -> SessionsOut:
    """The live sessions of the caller, newest first."""
    found = await services.accounts.list_sessions(principal)
    return SessionsOut(sessions=[SessionOut.of(session, current=principal.session_id) for session in found])


@router.delete("/sessions", status_code=204, summary="End my other sessions")
async def end_other_sessions(principal: PersonPrincipal, services: ServicesDep, address: ClientAddress) -> Response:
    """Ends all sessions of the caller but the present one."""
    await services.accounts.end_other_sessions(principal, address=address)
    return Response(status_code=204)


@router.delete("/sessions/{session_id}", status_code=204, summary="End one of my sessions")
async def end_session(session_id: Id, principal: PersonPrincipal, services: ServicesDep, address: ClientAddress) -> Response:
    """Ends one session of the caller, at once."""
    await services.accounts.end_session(principal, session_id, address=address)
    return Response(status_code=204)


@router.get("/keys", summary="List my API keys")
async def list_keys(principal: PersonPrincipal, services: ServicesDep) -> KeysOut:
    """The API keys of the caller, newest first, ended ones too. The keys themselves are not stored."""
    return KeysOut(keys=[KeyOut.of(key) for key in await services.accounts.list_keys(principal)])


@router.post("/keys", status_code=201, summary="Make an API key")
async def create_key(body: KeyBody, principal: PersonPrincipal, services: ServicesDep, address: ClientAddress) -> NewKeyOut:
    """Makes an API key. The key is in this answer and is never shown again."""
    made = await services.accounts.create_key(
        principal, name=body.name, scopes=body.scopes, expires_in_days=body.expires_in_days, address=address
    )
    return NewKeyOut.of_new(made)


@router.delete("/keys/{key_id}", status_code=204, summary="End an API key")
async def end_key(key_id: Id, principal: PersonPrincipal, services: ServicesDep, address: ClientAddress) -> Response:
    """Ends one API key of the caller, at once."""
    await services.accounts.end_key(principal, key_id, address=address)
    return Response(status_code=204)


@router.get("/invites", summary="List open invites (admin)")
async def list_invites(_: AdminPerson, services: ServicesDep) -> InvitesOut:
    """Invites that can still be used, newest first. The tokens themselves are not stored."""
    return InvitesOut(invites=[InviteOut.of(invite) for invite in await services.accounts.list_invites()])


@router.post("/invites", status_code=201, summary="Invite somebody (admin)")
async def create_invite(
    body: InviteBody, principal: AdminPerson, services: ServicesDep, address: ClientAddress
) -> NewInviteOut:
    """Makes an invite for one registration. The token is in this answer and is never shown again."""
    made = await services.accounts.create_invite(principal, role=body.role, hours=body.expires_in_hours, address=address)
    return NewInviteOut.of_new(made)


@router.delete("/invites/{invite_id}", status_code=204, summary="Withdraw an invite (admin)")
async def delete_invite(invite_id: Id, principal: AdminPerson, services: ServicesDep, address: ClientAddress) -> Response:
    """Withdraws an invite that has not been used."""
    await services.accounts.delete_invite(principal, invite_id, address=address)
    return Response(status_code=204)


@router.get("/users", summary="List users (admin)")
async def list_users(
    _: AdminPerson,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200, description="Users in the answer.")] = 100,
    after: Annotated[str | None, Query(max_length=36, description="`next` of the page before.")] = None,
) -> UsersOut:
    """Users, newest first, a page at a time."""
    found = await services.accounts.list_users(limit=limit, after=after)
    return UsersOut(users=[UserOut.of(user) for user in found], next=found[-1].id if len(found) == limit else None)


@router.patch("/users/{user_id}", summary="Change a user (admin)")
async def update_user(
    user_id: Id, body: UserBody, principal: AdminPerson, services: ServicesDep, address: ClientAddress
) -> UserOut:
    """Changes the role, or disables or enables the account. The user's sessions end at once. The last admin cannot be lost."""
    changed = await services.accounts.update_user(principal, user_id, role=body.role, disabled=body.disabled, address=address)
    return UserOut.of(changed)


@router.delete("/users/{user_id}", status_code=204, summary="Delete a user (admin)")
async def delete_user(user_id: Id, principal: AdminPerson, services: ServicesDep, address: ClientAddress) -> Response:
    """Deletes the account with its sessions, keys, conversations, predictions and feedback. There is no way back.

    Versions that were trained on this person's data go too; `POST /training/erasures` does the same and says what it did.
    """
    await services.erasure.erase(user_id, actor=principal, address=address)
    return Response(status_code=204)


async def _token_body(request: Request) -> TokenBody:
    """JSON, or the OAuth 2 form. Raises UnsupportedMediaType, InvalidRequest, RequestValidationError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = await request.body()
    if kind == "application/json":
        fields = decode_any(raw)
    elif kind == _FORM:
        fields = _form(raw)
    else:
        raise UnsupportedMediaType(f"Send `application/json` or `{_FORM}`.")
    try:
        return TokenBody.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from None


def _form(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=10)
    except ValueError:
        raise InvalidRequest("The form cannot be read.", field="body") from None
    if len(dict(pairs)) != len(pairs):
        raise InvalidRequest("A field of the form comes twice.", field="body")
    return dict(pairs)


def _refresh_token(request: Request, services: Services) -> str | None:
    return refresh_token(request.scope["headers"], tls=over_tls(request.scope, services.settings))


def _set_cookies(request: Request, response: Response, services: Services, begun: Login) -> None:
    settings = services.settings
    tls = over_tls(request.scope, settings)
    response.headers.append(
        "set-cookie", set_cookie("access", begun.token, max_age_s=begun.expires_in_s, tls=tls, settings=settings)
    )
    if begun.refresh_token is not None:
        response.headers.append(
            "set-cookie", set_cookie("refresh", begun.refresh_token, max_age_s=begun.refresh_in_s, tls=tls, settings=settings)
        )
