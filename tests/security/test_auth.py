"""The authenticator: carriers, the cache and how fast it forgets, open streams, keys."""

from __future__ import annotations

import asyncio
import logging

import pytest

from app.core.errors import StorageUnavailable, Unauthenticated, Unavailable
from app.core.records import KeyRecord
from app.core.types import Principal
from app.security.auth import CACHE_S
from tests.security.world import PASSWORD, World, raw, settings_with


async def log_in(world: World, name: str = "ada") -> tuple[str, Principal]:
    begun = await world.accounts.login(name, PASSWORD, kind="access", address="a")
    principal = await world.authenticator.principal(raw(authorization=f"Bearer {begun.token}"))
    assert principal is not None
    return begun.token, principal


async def key_of(world: World, person: Principal, *scopes: str, days: int | None = None) -> str:
    made = await world.accounts.create_key(person, name="k", scopes=scopes or ("predict",), expires_in_days=days)  # type: ignore[arg-type]
    return made.secret


async def refused(world: World, **headers: str) -> bool:
    try:
        await world.authenticator.principal(raw(**headers))
    except Unauthenticated:
        return True
    return False


async def test_every_carrier_gives_the_same(world: World) -> None:
    await world.user()
    access, person = await log_in(world)
    bearer = await world.bearer()
    key = await key_of(world, person, "predict")
    for credential, via in ((access, "session"), (bearer, "token"), (key, "key")):
        found = [
            await world.authenticator.principal(raw(**headers))
            for headers in (
                {"authorization": f"Bearer {credential}"},
                {"authorization": f"bearer  {credential} "},
                {"x_api_key": credential},
                {"cookie": f"other=1; aprendiz={credential}"},
                {"cookie": f"__Host-aprendiz={credential}"},
                {"authorization": f"Bearer {credential}", "x_api_key": credential, "cookie": f"aprendiz={credential}"},
            )
        ]
        assert found[0] is not None and found[0].via == via
        assert found == [found[0]] * len(found)


async def test_no_credential_and_bad_ones(world: World) -> None:
    await world.user()
    token, _ = await log_in(world)
    other = await world.bearer()
    for nothing in ({}, {"cookie": ""}, {"cookie": "a=b; c"}, {"cookie": "aprendiz="}, {"cookie": "aprendiz-refresh=x"}):
        assert await world.authenticator.principal(raw(**nothing)) is None
    for bad in (
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {token}"},
        {"authorization": token},
        {"authorization": f"Bearer {token} {token}"},
        {"authorization": f"Bearer {token},{token}"},
        {"x_api_key": ""},
        {"x_api_key": f"Bearer {token}"},
        {"x_api_key": "\xff"},
        {"authorization": f"Bearer {token}", "cookie": f"aprendiz={other}"},
        {"authorization": f"Bearer {token}", "x_api_key": other},
        {"cookie": f"aprendiz={token}; aprendiz={other}"},
        {"cookie": "aprendiz=x"},
        {"authorization": "Bearer " + "a" * 5000},
        {"authorization": "Bearer ' OR 1=1 --"},
        {"x_api_key": "apz_" + "'" * 43},
        {"x_api_key": "apz_" + "A" * 43},
    ):
        assert await refused(world, **bad), bad
    twice = [(b"authorization", f"Bearer {credential}".encode()) for credential in (token, other)]
    with pytest.raises(Unauthenticated):
        await world.authenticator.principal(twice)


async def test_nothing_but_headers_is_read(world: World) -> None:
    await world.user()
    token = await world.bearer()
    async with world.client() as client:
        for query in (f"access_token={token}", f"token={token}", f"api_key={token}", f"authorization=Bearer%20{token}"):
            assert (await client.get(f"/auth/me?{query}")).status_code == 401


async def test_the_host_cookie_wins_and_is_the_only_one_over_public_tls(world: World) -> None:
    await world.user()
    await world.user("eve")
    (mine, _), (planted, _) = await log_in(world), await log_in(world, "eve")
    both = raw(cookie=f"aprendiz={planted}; __Host-aprendiz={mine}")
    found = await world.authenticator.principal(both)
    assert found is not None and found.username == "ada"
    strict = World(settings_with(world.settings, server={"public_url": "https://llm.example"}), world.database)
    assert await strict.authenticator.principal(raw(cookie=f"aprendiz={planted}")) is None
    await strict.aclose()


async def test_tokens_end_with_their_session_and_their_own_time(world: World) -> None:
    await world.user()
    token, principal = await log_in(world)
    headers = {"authorization": f"Bearer {token}"}
    world.clock.advance(15 * 60 - 1)
    assert not await refused(world, **headers)
    world.clock.advance(1)  # the cache still holds it
    assert await refused(world, **headers)
    assert await world.authenticator.still_valid(principal)  # the session lives on
    world.clock.advance(31 * 86_400)
    assert not await world.authenticator.still_valid(principal)
    bearer = await world.bearer()
    world.clock.advance(12 * 3600 - 1)
    assert not await refused(world, authorization=f"Bearer {bearer}")
    world.clock.advance(1)
    assert await refused(world, authorization=f"Bearer {bearer}")


@pytest.mark.parametrize("change", ["logout", "role", "disable", "delete", "password"])
async def test_changes_are_felt_at_once_here_and_soon_elsewhere(world: World, change: str) -> None:
    user = await world.user()
    await world.user("root", role="admin")
    _, root = await log_in(world, "root")
    token, principal = await log_in(world)
    headers = raw(authorization=f"Bearer {token}")
    elsewhere = world.another_authenticator()
    assert await elsewhere.principal(headers) == principal
    assert await elsewhere.still_valid(principal)
    _, second = await log_in(world)
    if change == "logout":
        await world.accounts.logout(principal, None, address="a")
    elif change == "role":
        await world.accounts.update_user(root, user.id, role="admin")
    elif change == "disable":
        await world.accounts.update_user(root, user.id, disabled=True)
    elif change == "delete":
        await world.erasure.erase(user.id, actor=root)
    else:
        await world.accounts.change_password(second, PASSWORD, "six other words for today", address="a")
    assert await refused(world, authorization=f"Bearer {token}")
    assert not await world.authenticator.still_valid(principal)
    world.clock.advance(CACHE_S)
    with pytest.raises(Unauthenticated):
        await elsewhere.principal(headers)
    assert not await elsewhere.still_valid(principal)
    assert CACHE_S <= 5


async def test_a_key_dies_with_its_end_its_owner_and_its_time(world: World) -> None:
    user = await world.user()
    await world.user("root", role="admin")
    _, root = await log_in(world, "root")
    _, person = await log_in(world)
    key = await key_of(world, person, "predict", days=1)
    principal = await world.authenticator.principal(raw(x_api_key=key))
    assert principal is not None and principal.scopes == {"predict"}
    assert await world.authenticator.still_valid(principal)
    await world.accounts.update_user(root, user.id, disabled=True)
    assert await refused(world, x_api_key=key)
    assert not await world.authenticator.still_valid(principal)
    await world.accounts.update_user(root, user.id, disabled=False)
    assert not await refused(world, x_api_key=key)
    world.clock.advance(86_400)
    assert await refused(world, x_api_key=key)
    assert not await world.authenticator.still_valid(principal)


async def test_a_demoted_admins_key_loses_admin(world: World) -> None:
    user = await world.user("ada", role="admin")
    await world.user("root", role="admin")
    _, root = await log_in(world, "root")
    _, person = await log_in(world)
    key = await key_of(world, person, "predict", "admin")
    before = await world.authenticator.principal(raw(x_api_key=key))
    assert before is not None and before.is_admin
    await world.accounts.update_user(root, user.id, role="user")
    after = await world.authenticator.principal(raw(x_api_key=key))
    assert after is not None and not after.is_admin and after.scopes == {"predict"}
    assert not await world.authenticator.still_valid(before)


async def test_a_change_during_a_look_up_is_not_cached_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await world.user()
    token, principal = await log_in(world)
    authenticator = world.authenticator
    authenticator.forget(user_id=user.id)
    inside, go_on = asyncio.Event(), asyncio.Event()
    real = world.users.get

    async def slow(user_id: str) -> object:
        found = await real(user_id)
        inside.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(world.users, "get", slow)
    looking = asyncio.create_task(authenticator.principal(raw(authorization=f"Bearer {token}")))
    await inside.wait()
    monkeypatch.undo()
    await world.accounts.logout(principal, None, address="a")
    go_on.set()
    assert await looking == principal  # asked before the logout
    assert await refused(world, authorization=f"Bearer {token}")


async def test_equal_beginnings_are_not_mixed_up(world: World) -> None:
    await world.user()
    await world.user("eve")
    (ada, _), (eve, _) = await log_in(world), await log_in(world, "eve")
    assert ada[:20] == eve[:20]
    found = [await world.authenticator.principal(raw(x_api_key=token)) for token in (ada, eve, ada, eve)]
    assert [principal.username for principal in found if principal] == ["ada", "eve", "ada", "eve"]


async def test_the_cache_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.security.auth._MAX_CACHED", 3)
    await world.user()
    for _ in range(5):
        await log_in(world)
    assert len(world.authenticator._seen) == 3


class CountingKeys:
    """Keys whose ``touch`` counts, or fails."""

    def __init__(self, world: World, *, broken: bool = False) -> None:
        self.touched: list[str] = []
        self._broken = broken
        self._real = world.keys
        self.create, self.list, self.revoke = self._real.create, self._real.list, self._real.revoke

    async def by_hash(self, key_hash: str) -> KeyRecord | None:
        return await self._real.by_hash(key_hash)

    async def touch(self, key_id: str, *, now: object) -> None:
        self.touched.append(key_id)
        if self._broken:
            raise StorageUnavailable("The disk is full.")


@pytest.mark.parametrize("broken", [False, True])
async def test_last_use_is_noted_once_a_minute_and_never_in_the_way(
    world: World, broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await world.user()
    _, person = await log_in(world)
    key = await key_of(world, person)
    keys = CountingKeys(world, broken=broken)
    world.authenticator._keys = keys
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            assert await world.authenticator.principal(raw(x_api_key=key)) is not None
            world.clock.advance(1)
        await world.authenticator.aclose()
    assert len(keys.touched) == 2
    assert bool(caplog.records) is broken


async def test_last_use_is_stored(world: World) -> None:
    user = await world.user()
    _, person = await log_in(world)
    key = await key_of(world, person)
    await world.authenticator.principal(raw(x_api_key=key))
    await world.authenticator.aclose()
    assert (await world.keys.list(user.id))[0].last_used_at == world.clock.now()


async def test_storage_that_fails_lets_nobody_in(world: World) -> None:
    await world.user()
    token, principal = await log_in(world)
    world.clock.advance(CACHE_S)
    await world.database.aclose()
    with pytest.raises(Unavailable):
        await world.authenticator.principal(raw(authorization=f"Bearer {token}"))
    with pytest.raises(Unavailable):
        await world.authenticator.still_valid(principal)
