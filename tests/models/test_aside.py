"""Calls of the service's own: of the model that is named, where nobody is served, stored nowhere."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import EngineUnavailable, Overloaded, UnknownModel
from app.core.types import Message
from tests.models.conftest import MakeHouse
from tests.models.doubles import ScriptedProvider, ask, until, user

NAME = "scripted/a"


async def test_it_answers_and_leaves_no_trace(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.answer(ask("warm"), user())
    rows = len(house.predictions.rows)
    answer = await house.manager.aside.answer(ask("one two", NAME), "ana")
    assert answer.text == "a:one a:two "
    assert len(house.predictions.rows) == rows
    assert not house.manager.busy()
    assert await house.manager.aside.count([Message("user", "one two three")], NAME) == 3
    assert not house.manager.aside.remote(NAME)


async def test_it_loads_nothing(make_house: MakeHouse) -> None:
    house = await make_house(preload=False)
    with pytest.raises(EngineUnavailable):
        await house.manager.aside.answer(ask("one", NAME), "ana")
    assert house.scripted.opened == []
    assert await house.manager.aside.count([Message("user", "x" * 30)], NAME) == 14, "an estimate"
    with pytest.raises(UnknownModel):
        await house.manager.aside.answer(ask("one", "scripted/none"), "ana")


async def test_it_waits_until_nobody_is_served(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=2))
    await house.manager.answer(ask("warm"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    talking = asyncio.create_task(house.manager.answer(ask("talk"), user()))
    await until(lambda: model.running == 1)
    aside = asyncio.create_task(house.manager.aside.answer(ask("aside", NAME), "ana"))
    await asyncio.sleep(0.25)
    assert "aside" not in model.begun
    model.gate.set()
    await talking
    assert (await aside).text == "a:aside "


async def test_it_gives_its_slot_to_whoever_waits(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1))
    await house.manager.answer(ask("warm"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    aside = asyncio.create_task(house.manager.aside.answer(ask("a long summary of all", NAME), "ana"))
    await until(lambda: model.running == 1)
    waiting = asyncio.create_task(house.manager.answer(ask("hello"), user("bea")))
    await asyncio.sleep(0.05)
    model.gate.set()
    with pytest.raises(Overloaded):
        await aside
    assert (await waiting).answer.text == "a:hello "
    assert model.cancelled == 1


async def test_it_does_not_wait_for_ever(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.aside._WAIT_S", 0.15)
    house = await make_house(ScriptedProvider(slots=2))
    await house.manager.answer(ask("warm"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    talking = asyncio.create_task(house.manager.answer(ask("talk"), user()))
    await until(lambda: model.running == 1)
    with pytest.raises(Overloaded):
        await house.manager.aside.answer(ask("aside", NAME), "ana")
    model.gate.set()
    await talking


async def test_one_that_is_cancelled_frees_its_slot(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1))
    await house.manager.answer(ask("warm"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    aside = asyncio.create_task(house.manager.aside.answer(ask("aside", NAME), "ana"))
    await until(lambda: model.running == 1)
    aside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await aside
    await until(lambda: model.running == 0)
    model.gate.set()
    assert (await house.manager.answer(ask("hello"), user())).answer.text == "a:hello "
