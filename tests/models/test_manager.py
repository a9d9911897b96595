"""Names, loading, the queue in front of an engine, failures, idleness, shutdown."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import (
    AprendizError,
    EngineUnavailable,
    ModelLoadFailed,
    Overloaded,
    QueueFullForUser,
    ShuttingDown,
    StorageFull,
    UnknownModel,
)
from app.core.types import EngineState, ModelSpec
from app.models.generation import Generation
from tests.models.conftest import MakeHouse
from tests.models.doubles import Clock, House, ScriptedProvider, ask, spec, until, user


async def finish(generation: Generation) -> str:
    async with generation:
        async for _ in generation.events():
            pass
    return generation.version


# Names


@pytest.mark.parametrize("name", [None, "default", "scripted/a", "a"])
async def test_what_is_deployed_can_be_asked_for_by_any_of_its_names(make_house: MakeHouse, name: str | None) -> None:
    house = await make_house()
    completed = await house.manager.answer(ask(model=name), user())
    assert completed.prediction.alias == (None if name in ("scripted/a", "a") else "default")
    assert house.scripted.tries == 1


@pytest.mark.parametrize("name", ["b", "scripted/b", "echo/echo", "", "../a", "/etc/passwd", "A", "x" * 5000, "default "])
async def test_anything_else_is_unknown_loads_nothing_and_lists_what_there_is(make_house: MakeHouse, name: str) -> None:
    house = await make_house()
    with pytest.raises(UnknownModel) as caught:
        await house.manager.generate(ask(model=name), user(role="admin"))
    assert "default" in caught.value.detail and "scripted/a" in caught.value.detail
    assert len(caught.value.detail) < 300
    assert house.scripted.tries == 0
    assert house.metric("aprendiz_rejected_total", reason="unknown-model") == 1


async def test_another_alias_is_a_name_for_everybody(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.switch(spec("b"), actor=user(role="admin"), alias="small")
    for name in ("small", "scripted/b", "b"):
        assert (await house.manager.answer(ask(model=name), user())).prediction.version == "b-base"
    assert (await house.manager.answer(ask(), user())).prediction.version == "a-base"


def test_a_path_never_becomes_a_public_name() -> None:
    assert ModelSpec("llamacpp", "/home/ana/secret/model.gguf").public_name == "llamacpp/model.gguf"
    assert ModelSpec("hf", "owner/name").public_name == "hf/owner/name"


async def test_a_model_by_path_serves_and_shows_only_its_last_part(make_house: MakeHouse) -> None:
    provider = ScriptedProvider()
    provider.hashes["/home/ana/secret/m.gguf"] = "0123"
    house = await make_house(provider, model="/home/ana/secret/m.gguf")
    completed = await house.manager.answer(ask(), user())
    assert completed.prediction.model == "m.gguf"
    shown = repr(house.manager.status().aliases) + repr([each.model for each in house.manager.status().engines])
    assert "secret" not in shown
    [version] = await house.manager.versions()
    assert version.model == "m.gguf"


# Loading


async def test_a_hundred_first_calls_load_once_and_who_leaves_stops_nobody(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.gate.clear()
    calls = [asyncio.create_task(house.manager.answer(ask(), user(f"u{index}"))) for index in range(100)]
    await until(lambda: house.manager.status().waiting == 100)
    for call in calls[:30]:
        call.cancel()
    await until(lambda: house.manager.status().waiting == 70)
    house.scripted.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert house.scripted.tries == 1
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 30
    assert len(house.predictions.of_status("ok")) == 70
    assert house.scripted.last("a").most_running == 4
    assert list(house.versions.rows) == ["a-base"]
    assert house.metric("aprendiz_engine_load_seconds_count", model="scripted/a") == 1


async def test_preload_begins_without_a_call_and_readiness_follows(make_house: MakeHouse) -> None:
    provider = ScriptedProvider()
    provider.gate.clear()
    house = await make_house(provider, preload=True)
    status = house.manager.status()
    assert not status.ready and status.reason
    await until(lambda: provider.tries == 1)
    provider.gate.set()
    await until(lambda: house.manager.status().ready)
    await until(lambda: "default" in house.aliases.rows)
    assert house.aliases.rows["default"].version == "a-base"
    assert house.metric("aprendiz_engine_state", model="scripted/a", state="ready") == 1


async def test_without_preload_it_is_ready_to_load(make_house: MakeHouse) -> None:
    house = await make_house()
    assert house.manager.status().ready
    assert house.scripted.tries == 0


async def test_a_broken_model_is_not_tried_with_every_call(make_house: MakeHouse) -> None:
    clock = Clock()
    house = await make_house(None, clock)
    house.scripted.errors["a"] = ModelLoadFailed("It is broken.")
    for _ in range(50):
        with pytest.raises(EngineUnavailable) as caught:
            await house.manager.generate(ask(), user())
    assert caught.value.retry_after is not None and caught.value.retry_after >= 1
    assert house.scripted.tries == 1
    status = house.manager.status()
    assert not status.ready and status.reason == "It is broken."
    assert status.aliases[0].state is EngineState.FAILED
    waits = []
    for _ in range(12):
        clock.advance(house.manager.status().aliases[0].retry_in_s or 0)
        with pytest.raises(EngineUnavailable):
            await house.manager.generate(ask(), user())
        waits.append(house.manager.status().aliases[0].retry_in_s)
    assert house.scripted.tries == 13
    assert waits[:3] == [4, 8, 16] and waits[-1] == 300
    del house.scripted.errors["a"]
    clock.advance(300)
    await house.manager.answer(ask(), user())
    assert house.manager.status().ready and house.manager.status().aliases[0].error is None


async def test_a_failed_preload_is_tried_again_by_itself(make_house: MakeHouse) -> None:
    clock = Clock()
    provider = ScriptedProvider()
    provider.errors["a"] = ModelLoadFailed("It is broken.")
    house = await make_house(provider, clock, preload=True)
    await until(lambda: house.manager.status().aliases[0].state is EngineState.FAILED)
    house.manager.tick()
    await asyncio.sleep(0)
    assert provider.tries == 1
    del provider.errors["a"]
    clock.advance(3)
    house.manager.tick()
    await until(lambda: house.manager.status().ready)


async def test_waiting_calls_learn_why_the_load_failed(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.gate.clear()
    house.scripted.errors["a"] = ModelLoadFailed("It is broken.")
    calls = [asyncio.create_task(house.manager.generate(ask(), user(f"u{index}"))) for index in range(10)]
    await until(lambda: house.manager.status().waiting == 10)
    house.scripted.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, EngineUnavailable) and "It is broken." in result.detail for result in results)
    assert len(set(map(id, results))) == 10


async def test_a_provider_with_a_bug_is_a_failed_load_without_its_words(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.errors["a"] = RuntimeError("/secret/path")
    with pytest.raises(EngineUnavailable) as caught:
        await house.manager.generate(ask(), user())
    assert "secret" not in caught.value.detail


async def test_a_provider_that_is_not_allowed(make_house: MakeHouse) -> None:
    house = await make_house(preload=True)
    house.settings = house.settings.model_copy(update={"provider": "nobody"})
    other = house.build()
    await other.start()
    assert not other.status().ready
    with pytest.raises(EngineUnavailable):
        await other.generate(ask(), user())
    await other.aclose()


async def test_a_version_that_cannot_be_noted_does_not_serve(make_house: MakeHouse) -> None:
    house = await make_house()
    house.versions.error = StorageFull()
    with pytest.raises(StorageFull):
        await house.manager.generate(ask(), user())
    assert house.scripted.alive == []


async def test_a_load_that_never_ends_is_ended(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.deployment._LOAD_MARGIN_S", 0.0)
    house = await make_house(load_timeout_s=0.01)
    house.scripted.gate.clear()
    with pytest.raises(EngineUnavailable):
        await house.manager.generate(ask(), user())


# The queue


async def test_beyond_the_queue_is_503_beyond_ones_share_429_with_retry_after(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1), queue=5, queue_per_user=3)
    running = await house.manager.generate(ask(), user())
    waiting = [asyncio.create_task(house.manager.answer(ask(), user(name))) for name in ("ana", "ana", "ana", "bea", "cleo")]
    await until(lambda: house.manager.status().waiting == 5)
    with pytest.raises(QueueFullForUser) as mine:
        await house.manager.generate(ask(), user("ana"))
    with pytest.raises(Overloaded) as full:
        await house.manager.generate(ask(), user("dan"))
    assert mine.value.retry_after and full.value.retry_after
    assert house.metric("aprendiz_queue_length", model="scripted/a") == 5
    assert house.metric("aprendiz_running_predictions", model="scripted/a") == 1
    assert house.metric("aprendiz_rejected_total", reason="overloaded") == 1
    assert house.metric("aprendiz_rejected_total", reason="queue-full-for-user") == 1
    await finish(running)
    await asyncio.gather(*waiting)
    assert house.metric("aprendiz_queue_length", model="scripted/a") == 0
    assert house.metric("aprendiz_running_predictions", model="scripted/a") == 0


async def test_a_user_with_many_waiting_does_not_delay_anothers_first(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1), queue_per_user=200)
    running = await house.manager.generate(ask("running"), user("greedy"))
    heap = [asyncio.create_task(house.manager.answer(ask("heap"), user("greedy"))) for _ in range(100)]
    await until(lambda: house.manager.status().waiting == 100)
    first = asyncio.create_task(house.manager.answer(ask("first"), user("ana")))
    await until(lambda: house.manager.status().waiting == 101)
    await finish(running)
    await asyncio.gather(first, *heap)
    assert house.scripted.last("a").begun[:3] == ["running", "first", "heap"]


async def test_a_client_that_leaves_the_queue_never_reaches_the_engine(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1))
    running = await house.manager.generate(ask("running"), user())
    gone = asyncio.create_task(house.manager.answer(ask("gone"), user()))
    stays = asyncio.create_task(house.manager.answer(ask("stays"), user()))
    await until(lambda: house.manager.status().waiting == 2)
    gone.cancel()
    await until(lambda: house.manager.status().waiting == 1)
    await finish(running)
    await stays
    assert house.scripted.last("a").begun == ["running", "stays"]
    assert len(house.predictions.rows) == 2


async def test_waiting_longer_than_the_deadline_is_overloaded(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1), queue_timeout_s=0.03)
    running = await house.manager.generate(ask("running"), user())
    with pytest.raises(Overloaded) as caught:
        await house.manager.generate(ask("late"), user())
    assert caught.value.retry_after
    await finish(running)
    assert house.scripted.last("a").begun == ["running"]


# The engine's health


async def test_a_restarting_engine_keeps_the_queue_and_goes_on(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.answer(ask(), user())
    model = house.scripted.last("a")
    model.tell(EngineState.RESTARTING)
    assert not house.manager.status().ready
    call = asyncio.create_task(house.manager.answer(ask("again"), user()))
    await until(lambda: house.manager.status().waiting == 1)
    assert "again" not in model.begun
    model.tell(EngineState.READY)
    await call
    assert house.manager.status().ready
    assert house.metric("aprendiz_engine_restarts_total", model="scripted/a") == 1


async def test_an_engine_that_gives_up_tells_who_waits_and_is_replaced_after_a_while(make_house: MakeHouse) -> None:
    clock = Clock()
    house = await make_house(None, clock)
    await house.manager.answer(ask(), user())
    first = house.scripted.last("a")
    first.tell(EngineState.RESTARTING)
    call = asyncio.create_task(house.manager.generate(ask(), user()))
    await until(lambda: house.manager.status().waiting == 1)
    first.tell(EngineState.FAILED)
    with pytest.raises(EngineUnavailable):
        await call
    assert not house.manager.status().ready
    with pytest.raises(EngineUnavailable):
        await house.manager.generate(ask(), user())
    await until(lambda: first.closed)
    clock.advance(5)
    await house.manager.answer(ask(), user())
    assert house.scripted.tries == 2


# Few engines


async def test_an_idle_model_is_unloaded_and_comes_back_on_demand(make_house: MakeHouse) -> None:
    clock = Clock()
    house = await make_house(None, clock, idle_unload_minutes=10)
    generation = await house.manager.generate(ask(), user())
    clock.advance(3600)
    house.manager.tick()
    assert len(house.scripted.alive) == 1, "it is in use"
    await finish(generation)
    clock.advance(599)
    house.manager.tick()
    assert len(house.scripted.alive) == 1
    clock.advance(1)
    house.manager.tick()
    await until(lambda: house.scripted.alive == [])
    status = house.manager.status()
    assert status.ready and status.aliases[0].state is EngineState.STOPPED
    assert house.metric("aprendiz_engine_state", model="scripted/a", state="stopped") == 1
    await house.manager.answer(ask(), user())
    assert house.scripted.tries == 2


async def test_the_longest_unused_goes_when_there_are_too_many(make_house: MakeHouse) -> None:
    clock = Clock()
    house = await make_house(None, clock, max_loaded=2)
    for alias, model in (("x", "b"), ("y", "c")):
        clock.advance(1)
        await house.manager.switch(spec(model), actor=None, alias=alias)
    clock.advance(1)
    await house.manager.answer(ask(model="x"), user())
    clock.advance(1)
    await house.manager.answer(ask(), user())
    await until(lambda: len(house.scripted.alive) == 2)
    assert sorted(model.spec.model for model in house.scripted.alive) == ["a", "b"], "c was unused the longest"
    await house.manager.answer(ask(model="y"), user())
    await until(lambda: sorted(model.spec.model for model in house.scripted.alive) == ["a", "c"])


async def test_when_all_are_busy_another_is_refused(make_house: MakeHouse) -> None:
    house = await make_house(max_loaded=1)
    await house.manager.switch(spec("b"), actor=None, alias="x")
    running = await house.manager.generate(ask(model="x"), user())
    with pytest.raises(Overloaded):
        await house.manager.generate(ask(), user())
    await finish(running)
    assert (await house.manager.answer(ask(), user())).prediction.version == "a-base"


# The end


async def test_drain_lets_running_ones_end_and_refuses_the_rest(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=2))
    running = [await house.manager.generate(ask(), user()) for _ in range(2)]
    queued = [asyncio.create_task(house.manager.generate(ask(), user())) for _ in range(5)]
    await until(lambda: house.manager.status().waiting == 5)
    draining = asyncio.create_task(house.manager.drain(30))
    for call in queued:
        with pytest.raises(ShuttingDown):
            await call
    with pytest.raises(ShuttingDown):
        await house.manager.generate(ask(), user())
    with pytest.raises(ShuttingDown):
        await house.manager.switch(spec("b"), actor=None)
    status = house.manager.status()
    assert not status.ready and status.draining and status.running == 2
    assert not draining.done()
    for generation in running:
        await finish(generation)
    await draining
    assert len(house.predictions.of_status("ok")) == 2


async def test_after_the_grace_running_ones_end_with_a_clear_error(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask(), user())
    house.scripted.last("a").gate.clear()
    call = asyncio.create_task(finish(generation))
    await until(lambda: house.scripted.last("a").running == 1)
    abandoned = await house.manager.generate(ask(), user())
    await house.manager.drain(0.01)
    with pytest.raises(ShuttingDown):
        await call
    rows = house.predictions.rows
    assert rows[generation.id].status == rows[abandoned.id].status == "error"
    assert str(rows[generation.id].error).startswith("shutting-down")


async def test_closing_ends_loads_and_may_be_called_twice(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.gate.clear()
    call = asyncio.create_task(house.manager.generate(ask(), user()))
    await until(lambda: house.scripted.tries == 1)
    await house.manager.aclose()
    await house.manager.aclose()
    with pytest.raises(AprendizError):
        await call


# Restarts of the service


async def test_an_alias_survives_a_restart_while_the_configuration_says_the_same() -> None:
    house = House()
    await house.manager.start()
    await house.manager.switch(spec("b", "mine"), actor=None)
    await house.manager.aclose()
    again = house.build()
    await again.start()
    assert (await again.answer(ask(), user())).prediction.version == "b-mine"
    await again.aclose()
    house.settings = house.settings.model_copy(update={"model": "c"})
    other = house.build()
    await other.start()
    assert (await other.answer(ask(), user())).prediction.version == "c-base"
    await until(lambda: house.aliases.rows["default"].configured == "scripted/c")
    await other.aclose()


async def test_files_that_changed_behind_an_alias_are_noted() -> None:
    house = House()
    await house.manager.start()
    await house.manager.answer(ask(), user())
    await until(lambda: "default" in house.aliases.rows)
    await house.manager.aclose()
    house.scripted.hashes["a"] = "changed"
    again = house.build()
    await again.start()
    assert (await again.answer(ask(), user())).prediction.version == "changed-base"
    await until(lambda: house.aliases.rows["default"].version == "changed-base")
    await again.aclose()
