"""No secret leaves by the side door: canaries through every auth route, into answers and logs."""

from __future__ import annotations

import io
import logging
from typing import Any

import httpx
import pytest

from app.core.logging import JsonFormatter
from app.core.settings import Settings
from app.db.database import Database
from tests.security.world import World, bearer

CANARIES = {
    "password": "canary-pass-7f3a one",
    "new password": "canary-pass-7f3a two",
    "wrong password": "canary-pass-7f3a three",
    "typed as a name": "canary-pass-7f3a-four",
    "bad invite": "canary-invite-7f3a",
    "bad token": "canary-token-7f3a",
    "bad field": "canary-field-7f3a",
}


class Watch(httpx.AsyncClient):
    """A client that keeps every answer."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(transport=transport, base_url="https://localhost")
        self.seen: list[httpx.Response] = []

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        answer = await super().send(request, **options)
        self.seen.append(answer)
        return answer

    def text(self, *, without: frozenset[str] = frozenset()) -> str:
        """All that was answered, bodies and headers, but not from the paths ``without``, which show a secret once."""
        shown = [answer for answer in self.seen if answer.request.url.path not in without]
        return "\n".join(f"{answer.status_code} {answer.headers.multi_items()} {answer.text}" for answer in shown)


async def drive(client: Watch, world: World) -> dict[str, str]:
    """Every auth route, through success and failure. Returns the secrets that came up."""
    secrets = dict(CANARIES)
    secrets["invite"] = invite = await world.accounts.first_run_invite() or ""
    account = {"username": "ada", "password": secrets["password"]}
    await client.post("/auth/register", json=account)
    await client.post("/auth/register", json=account | {"invite": secrets["bad invite"]})
    await client.post("/auth/register", json=account | {"invite": invite, "password": "short"})
    await client.post("/auth/register", json=account | {"invite": invite, "extra": secrets["bad field"]})
    await client.post("/auth/register", json=account | {"invite": invite})
    for name, password in (("ada", "wrong password"), ("nobody", "wrong password"), ("typed as a name", "wrong password")):
        await client.post("/auth/login", json={"username": secrets.get(name, name), "password": secrets[password]})
        await client.post("/auth/token", json={"username": secrets.get(name, name), "password": secrets[password]})
    for body in ({"password": secrets["password"]}, {"username": 1, "password": secrets["password"]}, [secrets["password"]]):
        await client.post("/auth/login", json=body)
        await client.post("/auth/token", json=body)
    for content in (b'{"password": "' + secrets["password"].encode(), secrets["password"].encode()):
        for path in ("/auth/login", "/auth/token", "/auth/register"):
            await client.post(path, content=content, headers={"content-type": "application/json"})
    begun = await client.post("/auth/login", json=account)
    secrets |= {cookie.name: cookie.value or "" for cookie in client.cookies.jar}
    begun.headers.pop("set-cookie")
    renewed = await client.post("/auth/refresh")
    secrets |= {f"{cookie.name} renewed": cookie.value or "" for cookie in client.cookies.jar}
    renewed.headers.pop("set-cookie")
    client.cookies.clear()
    got = await client.post("/auth/token", json=account)
    secrets["bearer"] = token = got.json()["access_token"]
    headers = bearer(token)
    secrets["key"] = (await client.post("/auth/keys", json={"name": "k"}, headers=headers)).json()["key"]
    secrets["second invite"] = (await client.post("/auth/invites", json={}, headers=headers)).json()["token"]
    for carrier in (
        bearer(secrets["bad token"]),
        {"x-api-key": secrets["bad token"]},
        {"cookie": f"aprendiz={secrets['bad token']}"},
    ):
        await client.get("/auth/me", headers=carrier)
    for path in ("/auth/me", "/auth/sessions", "/auth/keys", "/auth/invites", "/auth/users"):
        await client.get(path, headers=headers)
        await client.get(path, headers=bearer(secrets["key"]))
    change = {"current_password": secrets["wrong password"], "password": secrets["new password"]}
    await client.post("/auth/password", json=change, headers=headers)
    await client.post("/auth/password", json=change | {"current_password": secrets["password"]}, headers=headers)
    await client.post("/auth/refresh", headers={"cookie": f"aprendiz-refresh={secrets['bad token']}"})
    user = (await world.users.list())[0]
    secrets["hash"] = user.password_hash
    await client.patch(f"/auth/users/{user.id}", json={"password_hash": secrets["bad field"]}, headers=headers)
    await client.delete(f"/auth/users/{user.id}", headers=headers)
    await client.post("/auth/logout", headers=headers)
    await world.database.aclose()  # and once more with storage gone
    await client.post("/auth/login", json=account)
    await client.get("/auth/me", headers=headers)
    return secrets


async def test_canaries(settings: Settings, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    world = World(settings, database)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    try:
        with caplog.at_level(logging.DEBUG):
            async with Watch(httpx.ASGITransport(world.app, client=("203.0.113.7", 1), raise_app_exceptions=False)) as client:
                secrets = await drive(client, world)
                shown_once = frozenset({"/auth/token", "/auth/keys", "/auth/invites"})
                answers = client.text(without=shown_once)
                token_answers = client.text()
    finally:
        logging.getLogger().removeHandler(handler)
    assert {answer.status_code for answer in client.seen} >= {200, 201, 204, 401, 403, 409, 422, 503}
    assert len(log.getvalue()) > 1000
    for name, secret in secrets.items():
        assert len(secret) > 8, name
        assert secret not in log.getvalue(), name
        assert secret not in answers, name
        if name not in ("bearer", "key", "second invite"):
            assert secret not in token_answers, name
    for word in ("Traceback", "sqlalchemy", "sqlite", "argon2", "pydantic", str(settings.data_dir), "/app/"):
        assert word not in token_answers, word


async def test_records_do_not_show_their_secrets(world: World) -> None:
    user = await world.user()
    begun = await world.accounts.login("ada", "four quiet words help", kind="access", address="a")
    session = await world.sessions.get(begun.session_id)
    assert session is not None
    for secret in (user.password_hash, begun.token, begun.refresh_token or "?", session.refresh_hash):
        assert secret not in repr((user, begun, session))
    assert "secret" not in repr(world.settings.security.secret_key).replace("SecretStr", "")
