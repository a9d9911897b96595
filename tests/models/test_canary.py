"""A canary's share of the sessions: sticky, shown, apart in the cache, and without harm to anybody when its engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from app.core.errors import Conflict, EngineUnavailable, ModelLoadFailed, NotPromotable
from app.core.settings import Cache
from app.core.types import EngineState, GenerationRequest, ModelSpec
from app.models.cache import ResponseCache
from app.models.canary import FAILS_AFTER
from app.models.routing import Canary
from tests.models.conftest import MakeHouse
from tests.models.doubles import Clock, House, ask, spec, until, user

CANARY = Canary("default", spec("a", "r1"), "a-r1", 0.3, "salt")


def talk(session: str, **more: object) -> GenerationRequest:
    return dataclasses.replace(ask("one", **more), conversation_id=session)  # type: ignore[arg-type]


async def version_of(house: House, session: str, model: str | None = None) -> str:
    asked = dataclasses.replace(talk(session), model=model)
    return (await house.manager.answer(asked, user())).prediction.version


async def started(make_house: MakeHouse, canary: Canary = CANARY) -> House:
    house = await make_house()
    assert await house.manager.start_canary(canary) == "a-base"
    return house


def test_the_draw_of_sessions_is_even_sticky_and_another_for_each_canary() -> None:
    sessions = [f"session {n}" for n in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        taken = sum(dataclasses.replace(CANARY, share=share).takes(each) for each in sessions)
        assert abs(taken / len(sessions) - share) < 0.012
    other = dataclasses.replace(CANARY, salt="other")
    both = sum(CANARY.takes(each) and other.takes(each) for each in sessions)
    assert abs(both / len(sessions) - 0.09) < 0.012
    smaller = {each for each in sessions if dataclasses.replace(CANARY, share=0.1).takes(each)}
    assert all(CANARY.takes(each) for each in smaller), "a larger share keeps those who have it"


async def test_sessions_stay_with_their_version_under_every_name(make_house: MakeHouse) -> None:
    house = await started(make_house)
    sides = {session: await version_of(house, session) for session in map(str, range(40))}
    assert set(sides.values()) == {"a-base", "a-r1"}
    assert all((version == "a-r1") is CANARY.takes(session) for session, version in sides.items())
    for session, version in list(sides.items())[:12]:
        for name in ("default", "scripted/a", "a", None):
            assert await version_of(house, session, name) == version


async def test_without_a_conversation_the_login_the_key_or_the_user_decides(make_house: MakeHouse) -> None:
    house = await started(make_house)
    for n in range(20):
        someone = dataclasses.replace(user(f"u{n}"), session_id=None, key_id=f"key {n}" if n % 2 else None)
        session = f"key {n}" if n % 2 else f"u{n}"
        done = await house.manager.answer(ask("one"), someone)
        assert (done.prediction.version == "a-r1") is CANARY.takes(session)


async def test_both_engines_are_kept_and_shown_and_the_canarys_goes_with_it(make_house: MakeHouse) -> None:
    house = await make_house(max_loaded=1, idle_unload_minutes=1)
    await house.manager.start_canary(CANARY)
    status = house.manager.status()
    assert {each.version.id for each in status.engines if each.version} == {"a-base", "a-r1"}
    assert status.canary is not None
    assert (status.canary.canary, status.canary.loaded) == (CANARY, True)
    house.manager.set_canary(None)
    await until(lambda: {model.version.id for model in house.scripted.alive} == {"a-base"})
    assert house.manager.status().canary is None
    assert {await version_of(house, str(n)) for n in range(10)} == {"a-base"}


async def test_a_second_canary_and_a_bad_one_change_nothing(make_house: MakeHouse) -> None:
    house = await started(make_house)
    with pytest.raises(Conflict):
        await house.manager.start_canary(dataclasses.replace(CANARY, spec=spec("b"), version="b-base"))
    house.manager.set_canary(None)
    house.scripted.errors["bad"] = ModelLoadFailed("It is broken.")
    for bad in (Canary("default", spec("bad"), "bad-base", 0.5, "s"), dataclasses.replace(CANARY, version="another")):
        with pytest.raises(ModelLoadFailed):
            await house.manager.start_canary(bad)
    assert house.manager.status().canary is None
    await until(lambda: {model.version.id for model in house.scripted.alive} == {"a-base"})


async def test_the_canarys_sessions_fall_back_where_it_fails_and_that_is_counted(make_house: MakeHouse) -> None:
    house = await started(make_house, dataclasses.replace(CANARY, share=0.5))
    mine = next(str(n) for n in range(100) if dataclasses.replace(CANARY, share=0.5).takes(str(n)))
    assert await version_of(house, mine) == "a-r1"
    house.scripted.errors["a"] = ModelLoadFailed("It is broken.")
    next(model for model in house.scripted.alive if model.version.id == "a-r1").tell(EngineState.FAILED)
    for _ in range(FAILS_AFTER):
        done = await house.manager.answer(talk(mine), user())
        assert (done.prediction.version, done.prediction.fallback) == ("a-base", "engine-unavailable")
    status = house.manager.status().canary
    assert status is not None
    assert status.broken
    assert (status.answered, status.failures) == (1, FAILS_AFTER)


async def test_a_restored_canary_is_loaded_by_its_first_session_and_must_be_the_same(make_house: MakeHouse) -> None:
    house = await make_house()
    house.manager.set_canary(CANARY)
    mine = next(str(n) for n in range(100) if CANARY.takes(str(n)))
    assert await version_of(house, mine) == "a-r1"
    house.manager.set_canary(dataclasses.replace(CANARY, spec=spec("a", "r2"), version="not a-r2"))
    assert await version_of(house, mine) == "a-base", "what would answer is another version"


async def test_the_two_sides_share_no_cached_answer(make_house: MakeHouse) -> None:
    house = await make_house()
    cache = ResponseCache(Cache(ttl_s=60), metrics=house.metrics, waiting=8, wait_s=5)
    manager = house.build()
    manager._cache = cache
    manager._calls._desk = dataclasses.replace(manager._calls._desk, cache=cache)
    await manager.start()
    try:
        await manager.start_canary(dataclasses.replace(CANARY, share=0.5))
        half = dataclasses.replace(CANARY, share=0.5)
        sessions = [str(n) for n in range(20)]
        for _ in range(2):
            for session in sessions:
                done = await manager.answer(talk(session, temperature=0), user())
                assert (done.prediction.version == "a-r1") is half.takes(session)
        assert house.metric("aprendiz_cache_total", result="hit") == 2 * len(sessions) - 2
        manager.set_canary(None)
        await asyncio.sleep(0)
        assert {(await manager.answer(talk(s, temperature=0), user())).prediction.version for s in sessions} == {"a-base"}
    finally:
        await manager.aclose()


async def test_a_canary_that_becomes_default_keeps_its_engine_and_its_answers(make_house: MakeHouse) -> None:
    house = await started(make_house)
    engine = next(model for model in house.scripted.alive if model.version.id == "a-r1")
    await house.manager.promote("a-r1", actor=None)
    house.manager.set_canary(None)
    assert {await version_of(house, str(n)) for n in range(10)} == {"a-r1"}
    assert not engine.closed
    await until(lambda: house.scripted.alive == [engine])


async def test_the_guard_stands_before_every_alias_and_after_a_restart(make_house: MakeHouse) -> None:
    house = await make_house()
    retired: set[str] = set()

    async def guard(wanted: ModelSpec, version: str) -> None:
        if wanted.adapter in retired:
            raise NotPromotable("It is retired.")

    def build() -> None:
        house.manager = house.build()
        house.manager._aliases._guard = guard

    await house.manager.aclose()
    build()
    await house.manager.start()
    await house.manager.answer(ask(), user())
    for adapter in ("r1", "r2", "r3"):
        await house.manager.switch(spec("a", adapter), actor=None)
    retired.update(("r2", "r3"))
    for attempt in (
        house.manager.switch(spec("a", "r2"), actor=None),
        house.manager.switch(spec("a", "r2"), actor=None, alias="other"),
        house.manager.promote("a-r2", actor=None),
        house.manager.promote_spec(spec("a", "r2"), version="a-r2", actor=None),
        house.manager.reload(actor=None),
    ):
        with pytest.raises(NotPromotable):
            await attempt
    await house.manager.aclose()
    build()
    await house.manager.start()
    assert house.manager.current() == (spec("a", "r1"), "a-r1"), "a restart passes over what is retired"
    assert house.audit.rows[-1].action == "model.refused"
    retired.add("r1")
    await house.manager.aclose()
    build()
    await house.manager.start()
    assert house.manager.current() == (spec("a"), "a-base")


async def test_changed_files_behind_an_alias_do_not_serve_unasked(make_house: MakeHouse) -> None:
    clock = Clock()
    house = await make_house(None, clock)

    async def guard(wanted: ModelSpec, version: str) -> None:
        if wanted.adapter is not None and version != "a-r1":
            raise NotPromotable("The gate has not judged this version.")

    house.manager._aliases._guard = guard
    await house.manager.answer(ask(), user())
    await house.manager.switch(spec("a", "r1"), actor=None)
    house.scripted.last("a").tell(EngineState.FAILED)
    house.scripted.hashes["a"] = "changed"
    versions = set()
    for _ in range(4):
        clock.advance(60)
        with contextlib.suppress(EngineUnavailable):
            versions.add((await house.manager.answer(ask(), user())).prediction.version)
    assert versions == {"changed-base"}, "a base is free; the adapter on a base that nobody judged is not"
