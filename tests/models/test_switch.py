"""Changing what answers while it answers: switch, reload, promote, roll back."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from app.core.errors import Conflict, InvalidRequest, ModelLoadFailed, NotFound, StorageFull, UnknownModel
from app.core.settings import Model, Providers
from app.core.types import EngineState, ModelSpec, TextDelta
from app.models.generation import Completed
from app.providers.base import ProviderContext
from app.providers.echo import EchoProvider
from tests.models.conftest import MakeHouse
from tests.models.doubles import House, ScriptedProvider, ask, spec, until, user

ADMIN = user("root", "admin")


async def version_now(house: House) -> str:
    return (await house.manager.answer(ask(), user())).prediction.version


async def test_switch_moves_the_alias_and_closes_the_old(make_house: MakeHouse) -> None:
    house = await make_house()
    assert await version_now(house) == "a-base"
    record = await house.manager.switch(spec("b"), actor=ADMIN)
    assert (record.model, record.version, record.moved_by, record.configured) == ("b", "b-base", "root", "scripted/a")
    assert house.aliases.rows["default"] == record
    assert await version_now(house) == "b-base"
    await until(lambda: [model.spec.model for model in house.scripted.alive] == ["b"])
    [line] = house.audit.rows
    assert (line.action, line.actor, line.target) == ("model.switch", "root", "alias:default")
    assert line.details == {"from": "scripted/a", "was": "a-base", "to": "scripted/b", "version": "b-base"}


async def test_running_and_queued_requests_finish_on_the_old_one(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1))
    running = await house.manager.generate(ask("running"), user())
    queued = [asyncio.create_task(house.manager.answer(ask("queued"), user())) for _ in range(3)]
    await until(lambda: house.manager.status().waiting == 3)
    await house.manager.switch(spec("b"), actor=ADMIN)
    old = house.scripted.last("a")
    assert await version_now(house) == "b-base"
    assert not old.closed
    assert [each.draining for each in house.manager.status().engines] == [False, True]
    async with running:
        text = "".join([event.text async for event in running.events() if isinstance(event, TextDelta)])
    assert text == "a:running "
    assert {completed.prediction.version for completed in await asyncio.gather(*queued)} == {"a-base"}
    await until(lambda: old.closed)
    assert old.begun == ["running", "queued", "queued", "queued"]


async def test_the_old_one_serves_while_the_new_one_loads(make_house: MakeHouse) -> None:
    house = await make_house()
    await version_now(house)
    house.scripted.gate.clear()
    switching = asyncio.create_task(house.manager.switch(spec("b"), actor=ADMIN))
    await until(lambda: house.scripted.tries == 2)
    assert await version_now(house) == "a-base"
    with pytest.raises(Conflict):
        await house.manager.switch(spec("c"), actor=ADMIN)
    with pytest.raises(Conflict):
        await house.manager.reload(actor=ADMIN)
    house.scripted.gate.set()
    await switching
    assert await version_now(house) == "b-base"


@pytest.mark.parametrize("name", ["missing", "broken"])
async def test_a_failed_load_leaves_everything_as_it_was(make_house: MakeHouse, name: str) -> None:
    house = await make_house()
    await version_now(house)
    house.scripted.errors["broken"] = ModelLoadFailed("It is broken.")
    before = dict(house.aliases.rows)
    with pytest.raises((UnknownModel, ModelLoadFailed)):
        await house.manager.switch(spec(name), actor=ADMIN)
    assert await version_now(house) == "a-base"
    assert house.aliases.rows == before
    assert house.manager.status().ready
    assert house.audit.rows == []
    with pytest.raises(UnknownModel):
        await house.manager.switch(ModelSpec("nobody", "x"), actor=ADMIN)
    house.scripted.errors.clear()
    if name == "broken":
        assert (await house.manager.switch(spec(name), actor=ADMIN)).model == "broken", "an admin waits for no cool-down"


async def test_an_alias_that_cannot_be_written_does_not_move(make_house: MakeHouse) -> None:
    house = await make_house()
    await version_now(house)
    await until(lambda: "default" in house.aliases.rows)
    house.aliases.error = StorageFull()
    with pytest.raises(StorageFull):
        await house.manager.switch(spec("b"), actor=ADMIN)
    assert await version_now(house) == "a-base"
    await until(lambda: [model.spec.model for model in house.scripted.alive] == ["a"])
    with pytest.raises(StorageFull):
        await house.manager.switch(ModelSpec("scripted", "a", adapter="x"), actor=ADMIN, alias="other")
    await until(lambda: len(house.scripted.alive) == 1)


async def test_an_admin_who_leaves_does_not_stop_the_switch_half_way(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.gate.clear()
    switching = asyncio.create_task(house.manager.switch(spec("b"), actor=ADMIN))
    await until(lambda: house.scripted.tries == 1)
    switching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await switching
    house.scripted.gate.set()
    await until(lambda: house.aliases.rows.get("default") is not None)
    assert await version_now(house) == "b-base"


async def test_going_back_to_what_still_drains_takes_it_back(make_house: MakeHouse) -> None:
    house = await make_house()
    running = await house.manager.generate(ask(), user())
    await house.manager.switch(spec("b"), actor=ADMIN)
    await house.manager.switch(spec("a"), actor=ADMIN)
    assert house.scripted.tries == 2, "a was taken back, not loaded again"
    assert await version_now(house) == "a-base"
    async with running:
        assert [event async for event in running.events()]
    assert not house.scripted.last("a").closed
    await until(lambda: house.scripted.last("b").closed)


async def test_switching_to_what_is_there_loads_and_moves_nothing(make_house: MakeHouse) -> None:
    house = await make_house()
    first = await house.manager.switch(spec("a"), actor=ADMIN)
    second = await house.manager.switch(spec("a"), actor=ADMIN)
    assert first == second
    assert house.scripted.tries == 1
    assert house.aliases.moves == 1


async def test_two_aliases_share_an_engine_and_it_goes_with_the_last(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.switch(spec("b"), actor=ADMIN, alias="x")
    await house.manager.switch(spec("b"), actor=ADMIN, alias="y")
    assert house.scripted.tries == 1
    await house.manager.switch(spec("c"), actor=ADMIN, alias="x")
    assert not house.scripted.last("b").closed
    await house.manager.switch(spec("c"), actor=ADMIN, alias="y")
    await until(lambda: house.scripted.last("b").closed)


@pytest.mark.parametrize("alias", ["", "A", "../x", "a b", "x" * 65, ".x"])
async def test_an_alias_has_a_plain_name(make_house: MakeHouse, alias: str) -> None:
    house = await make_house()
    with pytest.raises(InvalidRequest):
        await house.manager.switch(spec("b"), actor=ADMIN, alias=alias)


async def test_reload_is_a_fresh_engine_of_the_same(make_house: MakeHouse) -> None:
    house = await make_house()
    running = await house.manager.generate(ask("running"), user())
    old = house.scripted.last("a")
    record = await house.manager.reload(actor=ADMIN)
    assert record.version == "a-base"
    assert house.scripted.last("a") is not old
    await version_now(house)
    assert old.begun == []
    async with running:
        assert [event async for event in running.events()]
    assert old.begun == ["running"]
    await until(lambda: old.closed)
    assert house.metric("aprendiz_engine_state", model="scripted/a", state="ready") == 1
    assert house.metric("aprendiz_engine_state", model="scripted/a", state="stopped") == 0
    assert [line.action for line in house.audit.rows] == ["model.reload"]
    assert record.previous is None, "a reload is nothing to go back from"


async def test_a_failed_reload_leaves_the_old_one(make_house: MakeHouse) -> None:
    house = await make_house()
    await version_now(house)
    house.scripted.errors["a"] = ModelLoadFailed("It is broken.")
    with pytest.raises(ModelLoadFailed):
        await house.manager.reload(actor=ADMIN)
    assert await version_now(house) == "a-base"
    assert house.manager.status().ready
    await until(lambda: len(house.manager.status().engines) == 1)


async def test_reload_of_what_is_not_loaded_loads_it(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.reload(actor=ADMIN)
    assert house.manager.status().aliases[0].state is EngineState.READY
    assert house.scripted.tries == 1


async def test_promote_and_roll_back(make_house: MakeHouse) -> None:
    house = await make_house()
    await version_now(house)
    await house.manager.switch(spec("b", "tuned"), actor=ADMIN)
    assert (await house.manager.promote("a-base", actor=ADMIN)).model == "a"
    assert await version_now(house) == "a-base"
    record = await house.manager.rollback(actor=ADMIN)
    assert (record.model, record.adapter, record.version) == ("b", "tuned", "b-tuned")
    assert await version_now(house) == "b-tuned"
    assert (await house.manager.rollback(actor=ADMIN)).version == "a-base", "again goes back further"
    with pytest.raises(Conflict):
        await house.manager.rollback(actor=ADMIN)
    actions = [line.action for line in house.audit.rows]
    assert actions == ["model.switch", "model.promote", "model.rollback", "model.rollback"]


async def test_promote_of_the_unknown_and_rollback_to_nothing(make_house: MakeHouse) -> None:
    house = await make_house()
    with pytest.raises(NotFound):
        await house.manager.promote("f" * 16, actor=ADMIN)
    with pytest.raises(Conflict):
        await house.manager.rollback(actor=ADMIN)


async def test_a_version_whose_files_have_changed_is_not_promoted(make_house: MakeHouse) -> None:
    house = await make_house()
    await version_now(house)
    await house.manager.switch(spec("b"), actor=ADMIN)
    await until(lambda: house.scripted.last("a").closed)
    house.scripted.hashes["a"] = "changed"
    with pytest.raises(ModelLoadFailed):
        await house.manager.promote("a-base", actor=ADMIN)
    assert await version_now(house) == "b-base"
    await until(lambda: [model.spec.model for model in house.scripted.alive] == ["b"])


async def test_an_audit_table_that_fails_does_not_undo_a_move(make_house: MakeHouse) -> None:
    house = await make_house()

    async def fail(record: object) -> None:
        raise StorageFull

    house.audit.add = fail  # type: ignore[method-assign]
    await house.manager.switch(spec("b"), actor=ADMIN)
    assert await version_now(house) == "b-base"


def echo_house(tmp_path: Path) -> House:
    context = ProviderContext(Model(), Providers(), tmp_path, tmp_path, lambda name: None)
    house = House(EchoProvider(context), queue=1000, queue_per_user=1000)
    house.settings = house.settings.model_copy(update={"model": "tag-a"})
    house.manager = house.build()
    return house


async def test_fifty_switches_under_twenty_streams_lose_and_mix_nothing(tmp_path: Path) -> None:
    house = echo_house(tmp_path)
    manager = house.manager
    await manager.start()
    stop = asyncio.Event()
    answers: list[tuple[str, str]] = []
    tag_of: dict[str, str] = {}

    async def stream(index: int) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            wanted = [f"w{index}.{number}.{word}" for word in range(20)]
            generation = await manager.generate(ask(" ".join(wanted)), user(f"u{index % 5}"))
            pieces: list[str] = []
            async with generation:
                async for event in generation.events():
                    if isinstance(event, TextDelta):
                        pieces.append(event.text)
                        await asyncio.sleep(0)
                    elif isinstance(event, Completed):
                        assert event.prediction.version == generation.version
            words = "".join(pieces).split()
            tags = {word.partition(":")[0] for word in words}
            assert [word.partition(":")[2] for word in words] == wanted
            assert len(tags) == 1, "an answer of two models"
            answers.append((generation.version, tags.pop()))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for index in range(20):
            group.create_task(stream(index))
        for number in range(50):
            target = "tag-b" if number % 2 == 0 else "tag-a"
            record = await manager.switch(ModelSpec("echo", target), actor=None)
            tag_of[record.version] = target[-1]
            after = await manager.answer(ask("now"), user("late"))
            assert after.prediction.version == record.version, "served by the old one after switch() had returned"
            have = len(answers)
            await until(lambda have=have: len(answers) > have)  # type: ignore[misc]
        stop.set()
    assert len(tag_of) == 2
    assert all(tag_of[version] == tag for version, tag in answers)
    assert {tag for _, tag in answers} == {"a", "b"}
    assert all(row.status == "ok" for row in house.predictions.rows.values())
    await until(lambda: len(manager.status().engines) == 1)
    await manager.aclose()


@pytest.mark.parametrize("seed", range(10))
async def test_histories_of_switches_and_calls_look_as_if_one_after_another(tmp_path: Path, seed: int) -> None:
    """A call that begins after a switch has returned sees it; one that overlaps a switch sees what was before or after it."""
    chance = random.Random(seed)
    house = echo_house(tmp_path)
    manager = house.manager
    await manager.start()
    moment = itertools.count()
    switches: list[tuple[int, int, str]] = []
    calls: list[tuple[int, int, str]] = []

    async def switcher() -> None:
        for _ in range(10):
            for _ in range(chance.randint(0, 30)):
                await asyncio.sleep(0)
            target = chance.choice(["tag-a", "tag-b", "tag-c"])
            begin = next(moment)
            await manager.switch(ModelSpec("echo", target), actor=None)
            switches.append((begin, next(moment), target))

    async def caller(index: int) -> None:
        for _ in range(15):
            begin = next(moment)
            generation = await manager.generate(ask("x"), user(f"u{index}"))
            reserved = next(moment)
            async with generation:
                assert [event async for event in generation.events()]
            calls.append((begin, reserved, generation.model.partition("/")[2]))

    async with asyncio.TaskGroup() as group:
        group.create_task(switcher())
        for index in range(6):
            group.create_task(caller(index))
    for begin, reserved, model in calls:
        settled = [target for start, end, target in switches if end < begin][-1:] or ["tag-a"]
        meanwhile = [target for start, end, target in switches if end > begin and start < reserved]
        assert model in settled + meanwhile
    await manager.aclose()
