"""A version on trial: beside what serves, behind every user, without a trace."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import EngineUnavailable, InvalidRequest, ModelLoadFailed, ShuttingDown, UnknownModel
from app.core.types import EngineState, GenerationRequest, Message
from app.providers.base import Scores
from tests.models.conftest import MakeHouse
from tests.models.doubles import ScriptedProvider, ask, spec, until, user


async def test_a_trial_answers_beside_what_serves_and_leaves_no_trace(make_house: MakeHouse) -> None:
    house = await make_house(max_loaded=1)
    await house.manager.answer(ask("warm"), user())
    rows = len(house.predictions.rows)
    async with house.manager.trial(spec("a", "r1")) as trial:
        assert trial.version.id == "a-r1"
        assert (await trial.answer(ask("one two"))).text == "a:one a:two "
        assert (await house.manager.answer(ask("still"), user())).answer.text == "a:still "
        assert {model.version.id for model in house.scripted.alive} == {"a-base", "a-r1"}
    assert len(house.predictions.rows) == rows + 1
    assert house.aliases.moves == 1, "a trial moves no alias"
    assert house.manager.current() == (spec("a"), "a-base")
    await until(lambda: {model.version.id for model in house.scripted.alive} == {"a-base"})


async def test_a_trial_gets_the_services_defaults(make_house: MakeHouse) -> None:
    seen = []

    class Nosy(ScriptedProvider):
        async def open(self, spec, *, on_state):  # type: ignore[no-untyped-def]
            model = await super().open(spec, on_state=on_state)
            stream = model.stream

            def tell(request):  # type: ignore[no-untyped-def]
                seen.append(request)
                return stream(request)

            model.stream = tell  # type: ignore[method-assign]
            return model

    house = await make_house(Nosy(), system_prompt="Be brief.", max_tokens=17, temperature=0.25)
    async with house.manager.trial(spec("b")) as trial:
        await trial.answer(ask("one"))
    assert seen[0].messages[0] == Message("system", "Be brief.")
    assert (seen[0].sampling.max_tokens, seen[0].sampling.temperature) == (17, 0.25)


async def test_a_trial_of_what_serves_shares_its_engine_and_leaves_it(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.answer(ask(), user())
    async with house.manager.trial(spec("a")) as trial:
        await trial.answer(ask("one"))
    await house.manager.answer(ask(), user())
    assert len(house.scripted.opened) == 1


async def test_a_trial_evicts_the_idle_but_never_what_serves(make_house: MakeHouse) -> None:
    house = await make_house(max_loaded=2)
    await house.manager.switch(spec("a"), actor=None)
    await house.manager.switch(spec("b"), actor=None, alias="second")
    async with house.manager.trial(spec("c")), house.manager.trial(spec("d")):
        assert {model.spec.model for model in house.scripted.alive} == {"a", "b", "c", "d"}
        # What is on trial takes no room from users either.
        await house.manager.switch(spec("e"), actor=None, alias="third")
    assert house.manager.current("second") == (spec("b"), "b-base")


async def test_a_trial_gives_way_to_users_who_wait_and_leaves_them_a_slot(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=2))
    await house.manager.answer(ask(), user())
    model = house.scripted.last("a")
    model.gate.clear()
    async with house.manager.trial(spec("a")) as trial:
        served = [asyncio.create_task(house.manager.answer(ask(f"user {n}"), user(f"u{n}"))) for n in range(3)]
        await until(lambda: model.running == 2)
        trying = [asyncio.create_task(trial.answer(ask(f"trial {n}"))) for n in range(3)]
        await asyncio.sleep(0.12)
        assert house.manager.busy()
        assert not any(text.startswith("trial") for text in model.begun), "users wait, so no trial may begin"
        model.gate.set()
        await asyncio.gather(*served, *trying)
        # One user keeps talking: at most slots - 1 trials run beside.
        model.gate.clear()
        talking = asyncio.create_task(house.manager.answer(ask("talk"), user("u1")))
        await until(lambda: model.running == 1)
        more = [asyncio.create_task(trial.answer(ask("more"))) for _ in range(3)]
        await asyncio.sleep(0.12)
        assert model.running == 2
        model.gate.set()
        await asyncio.gather(talking, *more)
    assert not house.manager.busy()


async def test_users_of_another_engine_are_left_room_too(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=2))
    async with house.manager.trial(spec("b")) as trial, await house.manager.generate(ask(), user()):
        model = house.scripted.last("b")
        trying = [asyncio.create_task(trial.answer(ask("more"))) for _ in range(4)]
        await asyncio.gather(*trying)
        assert model.most_running == 1


async def test_busy_means_users(make_house: MakeHouse) -> None:
    house = await make_house()
    assert not house.manager.busy()
    async with house.manager.trial(spec("a", "r1")) as trial:
        model = house.scripted.last("a")
        model.gate.clear()
        trying = asyncio.create_task(trial.answer(ask()))
        await until(lambda: model.running == 1)
        assert not house.manager.busy(), "a trial is nobody"
        async with await house.manager.generate(ask(), user()):
            assert house.manager.busy()
        assert not house.manager.busy()
        model.gate.set()
        await trying


async def test_a_cancelled_trial_frees_everything(make_house: MakeHouse) -> None:
    house = await make_house()
    async with house.manager.trial(spec("b")) as trial:
        model = house.scripted.last("b")
        model.gate.clear()
        trying = asyncio.create_task(trial.answer(ask()))
        await until(lambda: model.running == 1)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert model.running == 0
        assert house.manager.status().running == 0
        model.gate.set()
        assert (await trial.answer(ask("again"))).text == "b:again "


async def test_a_trial_of_what_cannot_be_loaded(make_house: MakeHouse) -> None:
    house = await make_house()
    house.scripted.errors["bad"] = ModelLoadFailed("It is broken.")
    for name, error in (("bad", ModelLoadFailed), ("missing", UnknownModel)):
        with pytest.raises(error):
            async with house.manager.trial(spec(name)):
                pass
    assert (await house.manager.answer(ask("one"), user())).answer.text == "a:one "


async def test_a_trial_whose_engine_dies_ends(make_house: MakeHouse) -> None:
    house = await make_house()
    async with house.manager.trial(spec("b")) as trial:
        house.scripted.last("b").tell(EngineState.FAILED)
        with pytest.raises(EngineUnavailable):
            await trial.answer(ask())


async def test_no_trial_begins_once_the_service_stops(make_house: MakeHouse) -> None:
    house = await make_house()
    async with house.manager.trial(spec("b")) as trial:
        await house.manager.drain(0)
        with pytest.raises(ShuttingDown):
            await trial.answer(ask())


async def test_scores_and_prompts_pass_through(make_house: MakeHouse) -> None:
    house = await make_house(system_prompt="Be brief.")
    async with house.manager.trial(spec("b")) as trial:
        model = house.scripted.last("b")
        with pytest.raises(InvalidRequest):
            await trial.score(ask("one"), "two")

        async def score(request: GenerationRequest, completion: str) -> Scores:
            assert request.messages[0] == Message("system", "Be brief.")
            assert house.manager.status().running == 1, "it takes a slot"
            return Scores(-1.0, (-0.25, -0.75))

        model.score = score  # type: ignore[method-assign]
        assert (await trial.score(ask("one"), "two")).logprob == -1.0
        assert house.manager.status().running == 0


async def test_promote_spec_moves_only_to_the_version_it_names(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.manager.answer(ask(), user())
    with pytest.raises(ModelLoadFailed):
        await house.manager.promote_spec(spec("a", "r1"), version="a-other", actor=None)
    assert house.manager.current() == (spec("a"), "a-base")
    record = await house.manager.promote_spec(spec("a", "r1"), version="a-r1", actor=user("root", "admin"))
    assert (record.version, record.adapter, record.moved_by) == ("a-r1", "r1", "root")
    assert house.manager.current() == (spec("a", "r1"), "a-r1")
    with pytest.raises(UnknownModel):
        house.manager.current("nobody")
