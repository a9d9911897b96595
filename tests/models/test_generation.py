"""One prediction from its slot to its stored end, in all the ways that it may end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from app.core.errors import (
    EngineUnavailable,
    InvalidRequest,
    ShuttingDown,
    StorageFull,
    UpstreamError,
    UpstreamTimeout,
)
from app.core.ids import is_uuid7
from app.core.types import Event, Finished, GenerationRequest, Message, Sampling, TextDelta
from app.models import live
from app.models.generation import Completed, Generation
from app.models.live import LiveGeneration
from tests.models.conftest import MakeHouse
from tests.models.doubles import TIMEOUT_S, House, ScriptedProvider, ask, until, user


async def collect(generation: Generation) -> list[Event | Completed]:
    async with generation:
        return [event async for event in generation.events()]


def slots_taken(house: House) -> int:
    return house.manager.status().running


async def test_events_then_one_completed_after_the_prediction_is_stored(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two", max_tokens=9), user())
    assert is_uuid7(generation.id)
    assert (generation.model, generation.version) == ("scripted/a", "a-base")
    seen: list[Event | Completed] = []
    async with generation:
        async for event in generation.events():
            if isinstance(event, Finished | Completed):
                assert generation.id in house.predictions.rows
            else:
                assert house.predictions.rows == {}
            seen.append(event)
    assert [event.text for event in seen if isinstance(event, TextDelta)] == ["a:one ", "a:two "]
    assert isinstance(seen[-2], Finished)
    completed = seen[-1]
    assert isinstance(completed, Completed)
    row = house.predictions.rows[generation.id]
    assert completed.prediction == row
    assert (row.status, row.output, row.finish_reason, row.alias) == ("ok", "a:one a:two ", "stop", "default")
    assert (row.provider, row.model, row.version, row.user_id) == ("scripted", "a", "a-base", "ana")
    assert (row.prompt_tokens, row.completion_tokens) == (7, 2)
    assert row.first_token_ms is not None and row.first_token_ms <= row.total_ms
    assert row.input == {
        "messages": [{"role": "user", "content": "one two"}],
        "sampling": {"max_tokens": 9, "temperature": 0.2},
    }
    assert slots_taken(house) == 0
    assert house.metric("aprendiz_predictions_total", model="scripted/a", status="ok") == 1
    assert house.metric("aprendiz_tokens_total", model="scripted/a", kind="completion") == 2
    assert house.metric("aprendiz_time_to_first_token_seconds_count", model="scripted/a") == 1
    assert house.metric("aprendiz_prediction_seconds_count", model="scripted/a") == 1
    assert house.metric("aprendiz_queue_seconds_count", model="scripted/a") == 1


async def test_answer_folds_the_same_events(make_house: MakeHouse) -> None:
    house = await make_house()
    completed = await house.manager.answer(ask("one two"), user())
    assert completed.answer.text == "a:one a:two "
    assert completed.prediction.id in house.predictions.rows


@pytest.mark.parametrize("how", ["break", "raise", "cancel", "never begun"])
async def test_leaving_early_cancels_frees_and_stores_what_there_was(make_house: MakeHouse, how: str) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two three four"), user())
    model = house.scripted.last("a")

    async def consume() -> None:
        async with generation:
            if how == "never begun":
                return
            async for event in generation.events():
                assert isinstance(event, TextDelta)
                model.gate.clear()
                if how == "break":
                    break
                if how == "raise":
                    raise KeyError("the client is gone")

    task = asyncio.create_task(consume())
    if how == "cancel":
        await until(lambda: model.begun != [] and not model.gate.is_set())
        task.cancel()
    await asyncio.wait([task], timeout=TIMEOUT_S)
    assert model.running == 0
    assert slots_taken(house) == 0
    row = house.predictions.rows[generation.id]
    assert (row.status, row.finish_reason) == ("cancelled", "cancelled")
    assert row.output == ("" if how == "never begun" else "a:one ")
    assert (row.prompt_tokens, row.completion_tokens) == ((0, 0) if how == "never begun" else (4, 1))
    if how != "never begun":
        assert model.cancelled == 1
    assert house.metric("aprendiz_predictions_total", model="scripted/a", status="cancelled") == 1


async def test_closing_the_events_alone_is_enough(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two"), user())
    async with aclosing(generation.events()) as events:
        await anext(events)
    assert slots_taken(house) == 0
    assert house.predictions.rows[generation.id].status == "cancelled"


async def test_a_second_cancellation_does_not_stop_the_storing(make_house: MakeHouse) -> None:
    house = await make_house()
    house.predictions.gate = asyncio.Event()
    generation = await house.manager.generate(ask("one two"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    task = asyncio.create_task(collect(generation))
    await until(lambda: model.running == 1)
    task.cancel()
    await until(lambda: model.running == 0)
    task.cancel()
    await until(lambda: slots_taken(house) == 0)
    assert house.predictions.rows == {}
    house.predictions.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: generation.id in house.predictions.rows)
    assert house.predictions.rows[generation.id].status == "cancelled"


async def test_cancelled_while_a_whole_answer_is_stored_it_is_stored_as_whole(make_house: MakeHouse) -> None:
    house = await make_house()
    house.predictions.gate = asyncio.Event()
    generation = await house.manager.generate(ask("one"), user())
    task = asyncio.create_task(collect(generation))
    await until(lambda: slots_taken(house) == 0)
    task.cancel()
    await asyncio.sleep(0)
    house.predictions.gate.set()
    await asyncio.wait([task], timeout=TIMEOUT_S)
    await until(lambda: generation.id in house.predictions.rows)
    assert house.predictions.rows[generation.id].status == "ok"


async def test_a_providers_error_is_stored_and_raised(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two"), user())
    house.scripted.last("a").error = EngineUnavailable("The engine died.")
    with pytest.raises(EngineUnavailable):
        await collect(generation)
    row = house.predictions.rows[generation.id]
    assert (row.status, row.output, row.error) == ("error", "a:one ", "engine-unavailable: The engine died.")
    assert slots_taken(house) == 0


async def test_a_providers_bug_becomes_our_error_without_its_words(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two"), user())
    house.scripted.last("a").error = RuntimeError("/secret/path")
    with pytest.raises(UpstreamError) as caught:
        await collect(generation)
    assert "/secret" not in caught.value.detail
    row = house.predictions.rows[generation.id]
    assert row.status == "error" and "/secret" not in str(row.error)


async def test_a_bug_in_counting_leaves_nothing_open(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one two"), user())
    model = house.scripted.last("a")

    async def broken(request: GenerationRequest) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(model, "count_tokens", broken)
    model.error = EngineUnavailable("The engine died.")
    with pytest.raises(EngineUnavailable):
        await collect(generation)
    row = house.predictions.rows[generation.id]
    assert (row.status, row.prompt_tokens, row.completion_tokens) == ("error", 0, 1)
    async with asyncio.timeout(TIMEOUT_S):
        await house.manager.drain(TIMEOUT_S)  # it waits for answers that are still open


async def test_an_answer_without_end_is_cut(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MAX_CHARACTERS", 20)
    house = await make_house()
    generation = await house.manager.generate(ask("one two three four five six seven"), user())
    with pytest.raises(UpstreamError):
        await collect(generation)
    row = house.predictions.rows[generation.id]
    assert (row.status, row.output) == ("error", "a:one a:two a:three a:four ")
    assert slots_taken(house) == 0


async def test_a_stream_without_its_end_is_an_error(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one"), user())
    house.scripted.last("a").cut = True
    with pytest.raises(UpstreamError):
        await collect(generation)
    assert house.predictions.rows[generation.id].status == "error"


async def test_not_stored_means_no_completed(make_house: MakeHouse) -> None:
    house = await make_house()
    house.predictions.error = StorageFull()
    generation = await house.manager.generate(ask("one"), user())
    seen: list[Event | Completed] = []

    async def consume() -> None:
        async with generation:
            async for event in generation.events():
                seen.append(event)

    with pytest.raises(StorageFull):
        await consume()
    assert [type(event) for event in seen] == [TextDelta]
    assert slots_taken(house) == 0


@pytest.mark.parametrize("phase", ["in the engine", "at the consumer", "never begun"])
async def test_the_deadline_ends_it_wherever_it_is(make_house: MakeHouse, phase: str) -> None:
    house = await make_house(answer_timeout_s=0.05)
    generation = await house.manager.generate(ask("one two"), user())
    model = house.scripted.last("a")
    async with asyncio.timeout(TIMEOUT_S), generation:
        if phase == "in the engine":
            model.gate.clear()
            with pytest.raises(UpstreamTimeout):
                await anext(generation.events())
        else:
            events = generation.events()
            if phase == "at the consumer":
                await anext(events)
            await until(lambda: generation.id in house.predictions.rows)
            assert slots_taken(house) == 0, "a consumer that sleeps must not keep the slot"
            with pytest.raises(UpstreamTimeout):
                await anext(events)
    row = house.predictions.rows[generation.id]
    assert row.status == "error" and str(row.error).startswith("upstream-timeout")
    assert model.running == 0
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0, "our own cancellation must not stick to the caller's task"


async def test_an_interruption_and_the_clients_cancellation_at_once_is_a_cancellation(make_house: MakeHouse) -> None:
    house = await make_house()
    generation = await house.manager.generate(ask("one"), user())
    model = house.scripted.last("a")
    model.gate.clear()
    task = asyncio.create_task(collect(generation))
    await until(lambda: model.running == 1)
    assert isinstance(generation, LiveGeneration)
    generation.interrupt(ShuttingDown())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.running == 0
    assert slots_taken(house) == 0


async def test_a_request_without_a_system_message_gets_the_configured_one_and_it_is_stored(make_house: MakeHouse) -> None:
    house = await make_house(system_prompt="Be brief.")
    plain = await house.manager.answer(ask("hi"), user())
    assert plain.prediction.input["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    own = GenerationRequest((Message("system", "Be long."), Message("user", "hi")))
    told = await house.manager.answer(own, user())
    assert [each["content"] for each in told.prediction.input["messages"]] == ["Be long.", "hi"]


async def test_defaults_and_the_cap_of_the_context(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(context_tokens=256), max_tokens=64)
    short = await house.manager.answer(ask("hi"), user())
    assert short.prediction.input["sampling"] == {"max_tokens": 64, "temperature": 0.2}
    model = house.scripted.last("a")
    assert model.counted == 0, "a short prompt needs no question to the engine"
    long = await house.manager.answer(ask("word " * 200, max_tokens=100, temperature=0.0), user())
    assert long.prediction.input["sampling"] == {"max_tokens": 56, "temperature": 0.0}
    assert model.counted == 1


async def test_a_prompt_that_fills_the_context_is_refused_before_anything(make_house: MakeHouse) -> None:
    house = await make_house()
    with pytest.raises(InvalidRequest) as caught:
        await house.manager.generate(ask("word " * 256), user())
    assert "256" in caught.value.detail
    assert slots_taken(house) == 0
    assert house.predictions.rows == {}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerationRequest(()), "messages"),
        (GenerationRequest((Message("user", "x"),), sampling=Sampling(tools=({"type": "function"},))), "tools"),
        (
            GenerationRequest((Message("user", "x"),), sampling=Sampling(response_format={"type": "json_object"})),
            "response_format",
        ),
        (GenerationRequest((Message("user", "x"),), sampling=Sampling(logprobs=1)), "logprobs"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_and_costs_no_slot(
    make_house: MakeHouse, request_: GenerationRequest, field: str
) -> None:
    house = await make_house()
    with pytest.raises(InvalidRequest) as caught:
        await house.manager.generate(request_, user())
    assert caught.value.field == field
    assert slots_taken(house) == 0


async def test_a_thousand_rounds_of_leaving_leave_nothing_behind(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=2), queue=1000, queue_per_user=1000)
    await house.manager.answer(ask(), user())
    before = len(asyncio.all_tasks())

    async def leave(index: int) -> None:
        generation = await house.manager.generate(ask("one two three"), user(f"u{index % 7}"))
        async with generation:
            async for _ in generation.events():
                if index % 3:
                    break

    tasks = [asyncio.create_task(leave(index)) for index in range(1000)]
    for task in tasks[::5]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: slots_taken(house) == 0 and len(asyncio.all_tasks()) <= before)
    model = house.scripted.last("a")
    assert model.running == 0
    assert model.most_running <= 2
    assert house.manager.status().waiting == 0
