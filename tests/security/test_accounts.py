"""Accounts over HTTP: registration, sessions and their cookies, passwords, keys, invites, users."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from app.core.records import SessionRecord
from app.core.settings import Settings
from app.db.database import Database
from app.security.tokens import hash_secret
from tests.security.world import BASE, PASSWORD, CheapHasher, World, bearer, settings_with

ACCESS, REFRESH = "__Host-aprendiz", "__Secure-aprendiz-refresh"
PLAIN = "http://localhost"
ABSENT = "01932c07-7b6c-7d2e-9f3a-2b1c0d9e8f7a"
NEW = "six other words for today"


async def register(
    client: httpx.AsyncClient, invite: str | None, name: str = "ada", password: str = PASSWORD
) -> httpx.Response:
    body = {"username": name, "password": password} | ({} if invite is None else {"invite": invite})
    return await client.post("/auth/register", json=body)


async def login(client: httpx.AsyncClient, name: str = "ada", password: str = PASSWORD) -> httpx.Response:
    return await client.post("/auth/login", json={"username": name, "password": password})


def cookies_of(response: httpx.Response) -> dict[str, tuple[str, list[str]]]:
    """Name to value and flags, of every Set-Cookie."""
    found = {}
    for line in response.headers.get_list("set-cookie"):
        pair, *flags = line.split("; ")
        name, _, value = pair.partition("=")
        found[name] = (value, flags)
    return found


async def test_from_the_first_invite_to_logout(world: World) -> None:
    invite = await world.accounts.first_run_invite()
    async with world.client() as client:
        made = await register(client, invite, "Ada")
        assert made.status_code == 201
        assert made.json()["username"] == "ada"
        assert made.json()["role"] == "admin"
        assert "set-cookie" not in made.headers
        assert (await client.get("/auth/me")).status_code == 401
        begun = await login(client, "ADA")
        assert begun.status_code == 200
        assert begun.json()["user"]["id"] == made.json()["id"]
        assert begun.json()["expires_in"] == 900
        me = await client.get("/auth/me")
        assert me.json()["last_login_at"] is not None
        cookie = cookies_of(begun)[ACCESS][0]
        assert (await client.post("/auth/logout")).status_code == 204
        assert (await client.get("/auth/me")).status_code == 401
    async with world.client(cookies={ACCESS: cookie}) as thief:
        assert (await thief.get("/auth/me")).status_code == 401  # ended on our side, not only in the browser
    assert await world.accounts.first_run_invite() is None


@pytest.mark.parametrize(
    ("base", "server", "access", "refresh"),
    [
        (PLAIN, {}, "aprendiz", "aprendiz-refresh"),
        (BASE, {}, ACCESS, REFRESH),
        (PLAIN, {"public_url": "https://localhost"}, ACCESS, REFRESH),
    ],
)
async def test_cookies_are_exact(
    settings: Settings, database: Database, base: str, server: dict[str, Any], access: str, refresh: str
) -> None:
    world = World(settings_with(settings, server=server), database)
    await world.user()
    async with world.client(base=base) as client:
        begun = await login(client)
    cookies = cookies_of(begun)
    assert set(cookies) == {access, refresh}
    assert cookies[access][1] == ["Max-Age=900", "Path=/", "Secure", "HttpOnly", "SameSite=Lax"]
    assert cookies[refresh][1] == ["Max-Age=2592000", "Path=/auth", "Secure", "HttpOnly", "SameSite=Lax"]
    for value, _ in cookies.values():
        assert value not in begun.text
        assert len(value) < 4000
    await world.aclose()


async def test_secure_can_be_switched_off_for_plain_http_only(settings: Settings, database: Database) -> None:
    world = World(settings_with(settings, security={"secure_cookies": False}), database)
    await world.user()
    async with world.client(base=PLAIN) as client:
        assert cookies_of(await login(client))["aprendiz"][1] == ["Max-Age=900", "Path=/", "HttpOnly", "SameSite=Lax"]
    async with world.client() as client:
        assert "Secure" in cookies_of(await login(client))[ACCESS][1]
    await world.aclose()


@pytest.mark.parametrize("path", ["register", "login", "refresh", "logout"])
@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}])
async def test_no_other_site_logs_anybody_in_or_out_even_without_a_cookie(
    world: World, path: str, headers: dict[str, str]
) -> None:
    await world.user()
    async with world.client(headers=headers) as client:
        answer = await client.post(f"/auth/{path}", json={"username": "ada", "password": PASSWORD})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


async def test_programs_get_a_token_in_the_body_and_no_cookie(world: World) -> None:
    await world.user()
    form = {"username": "ada", "password": PASSWORD, "grant_type": "password", "scope": "", "client_id": ""}
    async with world.client() as client:
        for sent in (
            await client.post("/auth/token", data=form),
            await client.post("/auth/token", json={"username": "ada", "password": PASSWORD}),
        ):
            assert sent.status_code == 200
            assert sent.json().keys() == {"access_token", "token_type", "expires_in"}
            assert sent.json()["token_type"] == "bearer"
            assert "set-cookie" not in sent.headers
            assert (await client.get("/auth/me", headers=bearer(sent.json()["access_token"]))).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"username=ada&username=eve&password=x", "application/x-www-form-urlencoded", 422),
        (b"username=ada&password=x&role=admin", "application/x-www-form-urlencoded", 422),
        (b"username", "application/x-www-form-urlencoded", 422),
        (b"username=%FF&password=x", "application/x-www-form-urlencoded", 422),
        (b"&".join(b"a%d=1" % n for n in range(50)), "application/x-www-form-urlencoded", 422),
        (b'{"username": "ada", "password": "x", "role": "admin"}', "application/json", 422),
        (b'{"username": ["ada"], "password": "x"}', "application/json", 422),
        (b'["ada"]', "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"username": "ada", "password": "x"}', "text/plain", 415),
        (b"username=ada&password=x", "multipart/form-data; boundary=x", 415),
        (b"\xff", "application/json", 422),
    ],
)
async def test_token_refuses_other_bodies(world: World, content: bytes, kind: str, status: int) -> None:
    async with world.client() as client:
        answer = await client.post("/auth/token", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_wrong_unknown_and_disabled_look_the_same_and_cost_the_same(settings: Settings, database: Database) -> None:
    hasher = CheapHasher()
    world = World(settings, database, hasher=hasher)
    await world.user("known")
    await world.user("locked", disabled=True)
    seen = set()
    async with world.client() as client:
        for name, password in (
            ("known", "wrong password here"),
            ("unknown", "wrong password here"),
            ("not a name!", "wrong password here"),
            ("locked", "wrong password here"),
            ("locked", PASSWORD),
        ):
            hasher.verified.clear()
            answer = await login(client, name, password)
            assert len(hasher.verified) == 1
            assert hasher.verified[0].split("$")[:4] == ["", "argon2id", "v=19", "m=64,t=1,p=1"]
            seen.add((answer.status_code, answer.text, str(sorted(answer.headers.items()))))
    assert len(seen) == 1
    assert next(iter(seen))[0] == 401
    assert world.metrics.registry.get_sample_value("aprendiz_logins_total", {"result": "failed"}) == 5
    assert await world.audit.list() == []
    await world.aclose()


async def test_sign_up_tells_names_only_to_holders_of_an_invite(world: World) -> None:
    await world.user("taken")
    admin = await world.user("root", role="admin")
    async with world.client() as client:
        answers = [await register(client, invite, name) for name in ("taken", "free") for invite in (None, "guess")]
        assert {answer.status_code for answer in answers} == {403}
        assert len({answer.text for answer in answers}) == 1
        token = (await world.accounts._invite("user", hours=None, created_by=admin.id, address="")).token
        assert (await register(client, token, "TAKEN")).status_code == 409
        assert (await register(client, token, "free")).status_code == 201  # the refusal before did not use it up
        assert (await register(client, token, "other")).status_code == 403


async def test_open_registration_makes_users_only(settings: Settings, database: Database) -> None:
    world = World(settings_with(settings, security={"registration": "open"}), database)
    async with world.client() as client:
        assert (await register(client, None)).json()["role"] == "user"
        assert (await register(client, "bad invite", "eve")).status_code == 403
    await world.aclose()


async def test_invites_expire(world: World) -> None:
    invite = await world.accounts.first_run_invite()
    world.clock.advance(72 * 3600 + 1)
    async with world.client() as client:
        assert (await register(client, invite)).status_code == 403


async def test_a_new_first_run_invite_replaces_the_earlier_one(world: World) -> None:
    first, second = await world.accounts.first_run_invite(), await world.accounts.first_run_invite()
    async with world.client() as client:
        assert (await register(client, first)).status_code == 403
        assert (await register(client, second)).status_code == 201


async def test_a_hundred_first_sign_ups_make_one_admin(settings: Settings, database: Database) -> None:
    world = World(settings_with(settings, rate_limits={"enabled": False}), database)
    invite = await world.accounts.first_run_invite()
    async with world.client() as client:
        answers = await asyncio.gather(*(register(client, invite, f"user{number}") for number in range(100)))
    assert sorted(answer.status_code for answer in answers) == [201] + [403] * 99
    assert await world.users.count(role="admin") == await world.users.count() == 1
    await world.aclose()


@pytest.mark.parametrize(
    "body",
    [
        {"username": "ada", "password": PASSWORD, "role": "admin"},
        {"username": "ada", "password": PASSWORD, "id": "1"},
        {"username": "", "password": PASSWORD},
        {"username": "a" * 65, "password": PASSWORD},
        {"username": "../etc", "password": PASSWORD},
        {"username": "ada\n", "password": PASSWORD},
        {"username": ["ada"], "password": PASSWORD},
        {"username": "ada"},
        {"username": "ada", "password": "short"},
        {"username": "ada", "password": "p" * 513},
        {"username": "ada", "password": "correct words " * 10},
        {"username": "ada", "password": PASSWORD, "invite": "x" * 129},
        {"username": "ada", "password": 123456789012},
    ],
)
async def test_registering_is_bounded(world: World, body: dict[str, Any]) -> None:
    invite = await world.accounts.first_run_invite()
    async with world.client() as client:
        answer = await client.post("/auth/register", json={"invite": invite} | body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert await world.users.count() == 0


async def test_refresh_rotates_and_reuse_ends_the_session(world: World) -> None:
    await world.user()
    async with world.client() as client:
        first = cookies_of(await login(client))[REFRESH][0]
        renewed = await client.post("/auth/refresh")
        assert renewed.status_code == 200
        second, access = (cookies_of(renewed)[name][0] for name in (REFRESH, ACCESS))
        assert second != first
        assert second not in renewed.text
    async with world.client(cookies={REFRESH: first}) as late:
        world.clock.advance(5)
        again = await late.post("/auth/refresh")
        assert again.status_code == 200  # the immediate predecessor, within ten seconds
        assert set(cookies_of(again)) == {ACCESS}
        world.clock.advance(6)
        async with world.client(cookies={ACCESS: access}) as owner:
            assert (await owner.get("/auth/me")).status_code == 200
        assert (await late.post("/auth/refresh")).status_code == 401
    async with world.client(cookies={ACCESS: access, REFRESH: second}) as owner:
        assert (await owner.get("/auth/me")).status_code == 401
        assert (await owner.post("/auth/refresh")).status_code == 401
    assert [line.action for line in await world.audit.list()] == ["session.reuse", "session.begin"]


async def test_twenty_refreshes_at_once_make_one_child(world: World) -> None:
    await world.user()
    async with world.client() as client:
        first = cookies_of(await login(client))[REFRESH][0]

    async def refresh() -> httpx.Response:
        async with world.client(cookies={REFRESH: first}) as each:
            return await each.post("/auth/refresh")

    answers = await asyncio.gather(*(refresh() for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    children = [cookies_of(answer).get(REFRESH) for answer in answers]
    assert sum(child is not None for child in children) == 1


@pytest.mark.parametrize("token", ["", "x", "A" * 64, "a" * 5000, "../../etc/passwd", "' OR 1=1 --", "eyJhbGciOi.e30."])
async def test_bad_refresh_tokens(world: World, token: str) -> None:
    async with world.client(headers={"cookie": f"{REFRESH}={token}"}) as client:
        assert (await client.post("/auth/refresh")).status_code == 401


async def test_refreshing_does_not_prolong_the_session(world: World) -> None:
    await world.user()
    async with world.client() as client:
        token = cookies_of(await login(client))[REFRESH][0]
    for day in (9, 18, 27, 30):
        world.clock.advance(86_400 * (3 if day == 30 else 9))
        async with world.client(cookies={REFRESH: token}) as client:
            answer = await client.post("/auth/refresh")
        assert answer.status_code == (200 if day < 30 else 401)
        token = cookies_of(answer)[REFRESH][0] if day < 30 else token


async def test_a_session_that_nobody_renews_ends(world: World) -> None:
    await world.user()
    async with world.client() as client:
        token = cookies_of(await login(client))[REFRESH][0]
    world.clock.advance(14 * 86_400 + 1)
    async with world.client(cookies={REFRESH: token}) as client:
        assert (await client.post("/auth/refresh")).status_code == 401
    world.clock.advance(-60)
    async with world.client(cookies={REFRESH: token}) as client:
        assert (await client.post("/auth/refresh")).status_code == 401  # ended for good


async def test_login_replaces_whatever_session_came_along(world: World) -> None:
    await world.user()
    async with world.client() as client:
        before = cookies_of(await login(client))
        after = cookies_of(await login(client))
        assert before[ACCESS] != after[ACCESS]
        assert len((await client.get("/auth/sessions")).json()["sessions"]) == 1
    async with world.client(cookies={ACCESS: before[ACCESS][0]}) as old:
        assert (await old.get("/auth/me")).status_code == 401


async def test_the_oldest_of_too_many_sessions_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.security.accounts.MAX_SESSIONS", 3)
    user = await world.user()
    tokens = []
    for _ in range(5):
        world.clock.advance(1)
        tokens.append(await world.bearer())
    assert len(await world.sessions.list(user.id, now=world.clock.now())) == 3
    async with world.client() as client:
        statuses = [(await client.get("/auth/me", headers=bearer(token))).status_code for token in tokens]
    assert statuses == [401, 401, 200, 200, 200]


async def test_changing_the_password(world: World) -> None:
    await world.user()
    other = await world.bearer()
    async with world.client() as client:
        await login(client)

        async def change(current: str, new: str) -> int:
            return (await client.post("/auth/password", json={"current_password": current, "password": new})).status_code

        assert await change("not the current one", NEW) == 403
        assert await change(PASSWORD, "short") == 422
        assert await change(PASSWORD, PASSWORD) == 422
        assert await change(PASSWORD, NEW) == 204
        assert (await client.get("/auth/me")).status_code == 200
        assert (await client.get("/auth/me", headers={"cookie": "", **bearer(other)})).status_code == 401
    async with world.client() as client:
        assert (await login(client)).status_code == 401
        assert (await login(client, password=NEW)).status_code == 200


async def test_a_session_begun_during_a_change_of_password_does_not_survive(world: World) -> None:
    user = await world.user()
    token = await world.bearer()
    principal = await world.authenticator.principal([(b"authorization", f"Bearer {token}".encode())])
    assert principal is not None
    changing = asyncio.create_task(world.accounts.change_password(principal, PASSWORD, NEW, address="a"))
    logins = [asyncio.create_task(world.bearer()) for _ in range(20)]
    await changing
    await asyncio.gather(*logins, return_exceptions=True)
    live = await world.sessions.list(user.id, now=world.clock.now())
    assert [session.id for session in live] == [principal.session_id]


@pytest.mark.parametrize("change", ["password", "disabled", "deleted"])
async def test_a_session_begun_just_after_such_a_change_does_not_survive(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The change falls between the check of the password and the start of the session, so that its own sweep misses it."""
    user = await world.user()
    await world.user("root", role="admin")
    create = world.sessions.create

    async def change_first(session: SessionRecord) -> None:
        if change == "password":
            await world.users.update(user.id, password_hash=await world.passwords.hash(NEW))
        elif change == "disabled":
            await world.users.update(user.id, disabled_at=world.clock.now())
        await create(session)
        if change == "deleted":
            await world.users.delete(user.id)

    monkeypatch.setattr(world.sessions, "create", change_first)
    async with world.client() as client:
        answer = await login(client)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert await world.sessions.list(user.id, now=world.clock.now()) == []


async def test_the_hash_is_made_anew_when_parameters_change(settings: Settings, database: Database) -> None:
    old = World(settings, database, hasher=CheapHasher(memory_kib=32))
    user = await old.user()
    new = World(settings, database, hasher=CheapHasher(memory_kib=128))
    assert (await new.users.get(user.id) or user).password_hash.startswith("$argon2id$v=19$m=32,")
    await new.bearer()
    assert (await new.users.get(user.id) or user).password_hash.startswith("$argon2id$v=19$m=128,")
    await new.bearer()
    await old.aclose()
    await new.aclose()


async def test_sessions_are_listed_and_ended(world: World) -> None:
    await world.user()
    await world.user("eve")
    eve, token = await world.bearer("eve"), await world.bearer()
    world.clock.advance(1)
    async with world.client() as client:
        await client.post("/auth/login", json={"username": "ada", "password": PASSWORD}, headers={"user-agent": "Fox\x7f 1"})
        listed = (await client.get("/auth/sessions")).json()["sessions"]
        assert [session["current"] for session in listed] == [True, False]
        assert listed[0]["user_agent"] == "Fox 1"
        assert listed[0]["address"] == "203.0.113.7"
        assert (await client.delete(f"/auth/sessions/{listed[1]['id']}")).status_code == 204
    async with world.client() as client:
        assert (await client.get("/auth/me", headers=bearer(token))).status_code == 401
        foreign = await client.delete(f"/auth/sessions/{listed[0]['id']}", headers=bearer(eve))
        absent = await client.delete(f"/auth/sessions/{ABSENT}", headers=bearer(eve))
        assert foreign.status_code == absent.status_code == 404
        assert foreign.content == absent.content
        another = await world.bearer()
        assert (await client.delete("/auth/sessions", headers=bearer(another))).status_code == 204
        assert len((await client.get("/auth/sessions", headers=bearer(another))).json()["sessions"]) == 1


async def test_keys(world: World) -> None:
    user = await world.user()
    await world.user("eve")
    token, eve = await world.bearer(), await world.bearer("eve")
    async with world.client() as client:
        body = {"name": "report", "scopes": ["read", "predict"], "expires_in_days": 1}
        made = await client.post("/auth/keys", json=body, headers=bearer(token))
        assert made.status_code == 201
        key, key_id = made.json()["key"], made.json()["id"]
        assert made.json()["scopes"] == ["predict", "read"]
        assert key.startswith("apz_") and len(key) == 47
        listed = (await client.get("/auth/keys", headers=bearer(token))).json()["keys"]
        assert listed[0]["prefix"] == key[:12]
        assert "key" not in listed[0] and key not in str(listed)
        assert (await world.keys.list(user.id))[0].key_hash == hash_secret(key)
        assert (await client.get("/auth/me", headers=bearer(key))).json()["id"] == user.id
        foreign = await client.delete(f"/auth/keys/{key_id}", headers=bearer(eve))
        absent = await client.delete(f"/auth/keys/{ABSENT}", headers=bearer(eve))
        assert foreign.status_code == absent.status_code == 404
        assert foreign.content == absent.content
        assert (await client.delete(f"/auth/keys/{key_id}", headers=bearer(token))).status_code == 204
        assert (await client.get("/auth/me", headers=bearer(key))).status_code == 401


async def test_keys_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.security.belongings.MAX_KEYS", 2)
    await world.user()
    headers = bearer(await world.bearer())
    async with world.client() as client:

        async def create(**body: Any) -> int:
            return (await client.post("/auth/keys", json={"name": "k", **body}, headers=headers)).status_code

        assert await create(scopes=[]) == 422
        assert await create(scopes=["everything"]) == 422
        assert await create(scopes=["read"] * 5) == 422
        assert await create(name="") == 422
        assert await create(name="n\x00") == 422
        assert await create(expires_in_days=0) == 422
        assert await create(expires_in_days=1.5) == 422
        assert await create(expires_in_days=True) == 422
        assert await create(owner="eve") == 422
        assert await create(scopes=["admin"]) == 403
        assert [await create() for _ in range(3)] == [201, 201, 409]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auth/password", {"current_password": PASSWORD, "password": NEW}),
        ("GET", "/auth/sessions", None),
        ("DELETE", "/auth/sessions", None),
        ("DELETE", f"/auth/sessions/{ABSENT}", None),
        ("GET", "/auth/keys", None),
        ("POST", "/auth/keys", {"name": "more"}),
        ("DELETE", f"/auth/keys/{ABSENT}", None),
        ("GET", "/auth/invites", None),
        ("POST", "/auth/invites", {"role": "admin"}),
        ("DELETE", f"/auth/invites/{ABSENT}", None),
        ("GET", "/auth/users", None),
        ("PATCH", f"/auth/users/{ABSENT}", {"role": "admin"}),
        ("DELETE", f"/auth/users/{ABSENT}", None),
    ],
)
async def test_who_may_touch_accounts(world: World, method: str, path: str, body: dict[str, Any] | None) -> None:
    """No credential: 401. A key, an admin's with all scopes too: 403. A user on an admin's route: 403."""
    await world.user("root", role="admin")
    await world.user()
    admin = await world.authenticator.principal([(b"authorization", f"Bearer {await world.bearer('root')}".encode())])
    assert admin is not None
    key = await world.accounts.create_key(
        admin, name="all", scopes=("predict", "feedback", "read", "admin"), expires_in_days=None
    )
    async with world.client() as client:
        assert (await client.request(method, path, json=body)).status_code == 401
        assert (await client.request(method, path, json=body, headers=bearer(key.secret))).status_code == 403
        assert (await client.request(method, path, json=body, headers={"x-api-key": key.secret})).status_code == 403
        if "invites" in path or "users" in path:
            user = bearer(await world.bearer())
            assert (await client.request(method, path, json=body, headers=user)).status_code == 403


async def test_me_needs_the_scope_read(world: World) -> None:
    await world.user()
    person = await world.authenticator.principal([(b"authorization", f"Bearer {await world.bearer()}".encode())])
    assert person is not None
    key = await world.accounts.create_key(person, name="p", scopes=("predict",), expires_in_days=None)
    async with world.client() as client:
        assert (await client.get("/auth/me", headers=bearer(key.secret))).status_code == 403


async def test_admins_invite_change_and_delete(world: World) -> None:
    await world.user("root", role="admin")
    root = bearer(await world.bearer("root"))
    async with world.client() as client:
        made = await client.post("/auth/invites", json={"role": "user", "expires_in_hours": 1}, headers=root)
        assert made.status_code == 201
        listed = (await client.get("/auth/invites", headers=root)).json()["invites"]
        assert [invite["id"] for invite in listed] == [made.json()["id"]]
        assert made.json()["token"] not in str(listed)
        ada = (await register(client, made.json()["token"])).json()["id"]
        assert (await client.delete(f"/auth/invites/{made.json()['id']}", headers=root)).status_code == 404
        token = bearer(await world.bearer())
        users = f"/auth/users/{ada}"
        assert (await client.patch(users, json={"role": "admin"}, headers=root)).json()["role"] == "admin"
        assert (await client.get("/auth/me", headers=token)).status_code == 401  # a changed role ends sessions
        token = bearer(await world.bearer())
        assert (await client.get("/auth/users", headers=token)).status_code == 200
        assert (await client.patch(users, json={"disabled": True}, headers=root)).json()["disabled"] is True
        assert (await client.get("/auth/me", headers=token)).status_code == 401
        assert (await client.patch(users, json={"disabled": False}, headers=root)).status_code == 200
        assert (await client.get("/auth/me", headers=token)).status_code == 401
        token = bearer(await world.bearer())
        assert (await client.delete(users, headers=root)).status_code == 204
        assert world.models.forgotten == ["all", f"recollections of {ada}"]
        assert (await client.get("/auth/me", headers=token)).status_code == 401
        absent = await client.delete(users, headers=root)
        assert absent.status_code == 404


async def test_user_changes_are_bounded_and_the_last_admin_stays(world: World) -> None:
    admin = await world.user("root", role="admin")
    root = bearer(await world.bearer("root"))
    path = f"/auth/users/{admin.id}"
    async with world.client() as client:
        for body in ({}, {"role": "owner"}, {"disabled": "yes"}, {"role": "user", "password_hash": "x"}, {"username": "eve"}):
            assert (await client.patch(path, json=body, headers=root)).status_code == 422
        assert (await client.patch(path, json={"role": "user"}, headers=root)).status_code == 409
        assert (await client.patch(path, json={"disabled": True}, headers=root)).status_code == 409
        assert (await client.delete(path, headers=root)).status_code == 409
        assert (await client.get("/auth/me", headers=root)).status_code == 200


async def test_users_come_in_pages_without_hashes(world: World) -> None:
    for number in range(5):
        await world.user(f"user{number}")
    await world.user("root", role="admin")
    root = bearer(await world.bearer("root"))
    names: list[str] = []
    after: str | None = None
    async with world.client() as client:
        for _ in range(3):
            page = await client.get("/auth/users", params={"limit": 2, **({"after": after} if after else {})}, headers=root)
            assert "argon2" not in page.text
            names += [user["username"] for user in page.json()["users"]]
            after = page.json()["next"]
        assert len(set(names)) == 6
        for query in ("limit=0", "limit=201", "limit=x", "after=" + "x" * 37):
            assert (await client.get(f"/auth/users?{query}", headers=root)).status_code == 422


async def test_every_change_is_in_the_audit_log(world: World) -> None:
    await world.user("root", role="admin")
    root = bearer(await world.bearer("root"))
    async with world.client() as client:
        invite = (await client.post("/auth/invites", json={}, headers=root)).json()["token"]
        ada = (await register(client, invite)).json()["id"]
        key = (await client.post("/auth/keys", json={"name": "k"}, headers=root)).json()
        await client.delete(f"/auth/keys/{key['id']}", headers=root)
        await client.patch(f"/auth/users/{ada}", json={"disabled": True}, headers=root)
        await client.delete(f"/auth/users/{ada}", headers=root)
        await client.post("/auth/password", json={"current_password": PASSWORD, "password": NEW}, headers=root)
        await client.post("/auth/logout", headers=root)
    lines = await world.audit.list()
    assert [line.action for line in reversed(lines)] == [
        "session.begin",
        "invite.create",
        "user.register",
        "key.create",
        "key.end",
        "user.update",
        "user.delete",
        "user.password",
        "session.end",
    ]
    assert all(line.target and line.address == "203.0.113.7" for line in lines)
