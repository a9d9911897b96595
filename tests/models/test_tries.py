"""Targets that fail before their first piece, and what becomes of the call: again, another, as well, or the error."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.core.errors import (
    AprendizError,
    ContextOverflow,
    EngineUnavailable,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    QueueFullForUser,
    ShuttingDown,
    UnknownModel,
    UpstreamBusy,
    UpstreamCoolingDown,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.core.records import PredictionRecord
from app.core.types import EmbeddingRequest, TextDelta
from app.models.generation import Completed, Generation
from tests.models.conftest import MakeHouse
from tests.models.doubles import TIMEOUT_S, Clock, House, ScriptedProvider, ask, until, user
from tests.models.remote import Act, Later, RemoteProvider, route

PLAIN = {"far": {"models": ["*"]}}


@pytest.fixture
def far() -> RemoteProvider:
    return RemoteProvider()


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Second tries come at once; holds the seconds that they would have waited."""
    waited: list[float] = []

    def backoff(tries: int, asked_s: float | None, rng: random.Random) -> float:
        waited.append(asked_s or 0.0)
        return 0.0

    monkeypatch.setattr("app.models.tries.backoff_s", backoff)
    return waited


async def told(house: House, model: str = "r") -> PredictionRecord:
    async with asyncio.timeout(TIMEOUT_S):
        return (await house.manager.answer(ask("hi", model=model), user())).prediction


async def consume(generation: Generation) -> list[Any]:
    async with generation:
        return [batch async for batch in generation.batches()]


def idle(house: House, far: RemoteProvider) -> bool:
    status = house.manager.status()
    return status.running == status.waiting == far.running == 0 and not house.manager._calls.active


# Another target


FAILURES: list[tuple[Any, str]] = [
    (UpstreamTimeout(), "timeout"),
    (UpstreamUnreachable(), "unreachable"),
    (UpstreamBusy(retry_after=3), "busy"),
    (UpstreamBusy(), "busy"),
    (UpstreamRefused(), "refused"),
    (UpstreamError(), "error"),
    (UnknownModel(), "error"),
    (RuntimeError("/secret/path"), "error"),
    ("empty", "error"),
    (EngineUnavailable(), "engine"),
]


@pytest.mark.parametrize(("failure", "kind"), FAILURES)
async def test_each_class_of_failure_goes_to_the_next_target(
    make_house: MakeHouse, far: RemoteProvider, failure: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", fallback_on=[kind])})
    far["x"].script = [failure]
    row = await told(house)
    slug = getattr(failure, "slug", "upstream-error") if isinstance(failure, AprendizError) else "upstream-error"
    assert (row.model, row.version, row.fallback, row.alias, row.status) == ("y", "far-y", slug, "r", "ok")
    assert len(far["x"].calls) == len(far["y"].calls) == 1
    assert house.metric("aprendiz_fallbacks_total", **{"from": "far/x", "reason": slug}) == 1
    assert house.metric("aprendiz_attempts_total", model="far/x", outcome=kind) == 1
    assert house.metric("aprendiz_attempts_total", model="far/y", outcome="ok") == 1
    assert house.metric("aprendiz_predictions_total", model="far/y", status="ok") == 1
    assert list(house.predictions.rows) == [row.id]
    [line] = [each for each in caplog.records if each.message == "another target is asked"]
    assert line.__dict__["data"] == {"route": "r", "from": "far/x", "to": "far/y", "error": slug}
    assert "secret" not in str(row)
    assert idle(house, far)


@pytest.mark.parametrize(("failure", "kind"), FAILURES)
async def test_a_class_that_the_route_does_not_name_is_the_answer(
    make_house: MakeHouse, far: RemoteProvider, failure: Any, kind: str
) -> None:
    others = [each for each in ("timeout", "unreachable", "busy", "refused", "error", "engine") if each != kind]
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", fallback_on=others)})
    far["x"].script = [failure]
    with pytest.raises(type(failure) if isinstance(failure, AprendizError) else UpstreamError):
        await told(house)
    assert far["y"].calls == []
    [row] = house.predictions.rows.values()
    assert (row.status, row.model, row.fallback) == ("error", "x", None)
    assert idle(house, far)


@pytest.mark.parametrize("error", [InvalidRequest("Bad words."), ContextOverflow("Too long.")])
async def test_what_is_the_callers_own_is_never_tried_again(
    make_house: MakeHouse, far: RemoteProvider, error: AprendizError
) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", retries=3)})
    far["x"].script = [error]
    for _ in range(6):
        with pytest.raises(type(error)):
            await told(house)
    assert len(far["x"].calls) == 6 and far["y"].calls == []
    assert house.metric("aprendiz_breaker_state", model="far/x") == 0, "and does not speak against the target"
    assert house.metric("aprendiz_attempts_total", model="far/x", outcome="invalid") == 6


@pytest.mark.parametrize("act", ["break", "cut"])
async def test_after_the_first_piece_nothing_is_tried_any_more(make_house: MakeHouse, far: RemoteProvider, act: str) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", retries=3)})
    far["x"].script = [act]
    generation = await house.manager.generate(ask(model="r"), user())
    seen: list[Any] = []

    async def consume_into() -> None:
        async with generation:
            async for batch in generation.batches():
                seen.append(batch)

    with pytest.raises(AprendizError):
        await consume_into()
    assert [event.text for batch in seen for event in batch] == ["far/x ", "one "]
    assert len(far["x"].calls) == 1 and far["y"].calls == []
    row = house.predictions.rows[generation.id]
    assert (row.status, row.output, row.fallback) == ("error", "far/x one ", None)
    assert idle(house, far)


async def test_the_name_and_version_are_those_of_whoever_answers(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y")})
    far["x"].script = [UpstreamRefused()]
    generation = await house.manager.generate(ask(model="r"), user())
    assert generation.model == "far/x"
    async with generation:
        first = await anext(generation.batches())
        assert not isinstance(first, Completed) and first[0] == TextDelta("far/y ")
        final = (generation.model, generation.version, generation.fallback)
    assert final == ("far/y", "far-y", "upstream-refused")


async def test_the_last_targets_error_is_the_answer_when_all_fail(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", "far/z")})
    far["x"].script, far["y"].script, far["z"].script = [UpstreamTimeout()], [UpstreamRefused()], [UpstreamUnreachable("z")]
    with pytest.raises(UpstreamUnreachable):
        await told(house)
    [row] = house.predictions.rows.values()
    assert (row.model, row.status, row.fallback) == ("z", "error", "upstream-timeout")


async def test_an_engine_that_does_not_load_gives_way_to_another_before_the_call_is_taken(make_house: MakeHouse) -> None:
    far = RemoteProvider()
    house = await make_house(others=[far], routes={"default": route("default", "far/y")})
    house.scripted.errors["a"] = ModelLoadFailed("It is broken.")
    for _ in range(3):
        row = await told(house, "default")
        assert (row.provider, row.fallback) == ("far", "engine-unavailable")
    assert house.scripted.tries == 1
    assert house.metric("aprendiz_rejected_total", reason="engine-unavailable") == 0


async def test_a_full_queue_gives_way_and_ones_own_heap_does_not(make_house: MakeHouse) -> None:
    far = RemoteProvider()
    house = await make_house(
        ScriptedProvider(slots=1), others=[far], routes={"r": route("default", "far/y")}, queue=2, queue_per_user=1
    )
    running = await house.manager.generate(ask(model="default"), user())
    waiting = [asyncio.create_task(house.manager.answer(ask(model="default"), user(name))) for name in ("ana", "bea")]
    await until(lambda: house.manager.status().waiting == 2)
    with pytest.raises(QueueFullForUser):
        await told(house)
    completed = await house.manager.answer(ask(model="r"), user("cleo"))
    assert (completed.prediction.provider, completed.prediction.fallback) == ("far", "overloaded")
    await consume(running)
    await asyncio.gather(*waiting)


# A longer context


async def test_a_prompt_too_long_for_the_others_goes_to_the_long_one(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("default", "far/y", long_context="far/long")})
    completed = await house.manager.answer(ask("word " * 300, model="r"), user())
    assert (completed.prediction.model, completed.prediction.fallback) == ("long", "context-overflow")
    assert house.scripted.last("a").begun == [] and far["y"].calls == []
    assert (await told(house)).provider == "scripted", "a short one stays"


async def test_the_targets_own_word_about_the_context_counts_too(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", long_context="far/long", fallback_on=[])})
    far["x"].script = [ContextOverflow()]
    assert (await told(house)).model == "long"
    far["long"].script = [ContextOverflow("Too long for all.")]
    with pytest.raises(ContextOverflow) as caught:
        await told(house)
    assert caught.value.detail == "Too long for all."
    assert len(far["long"].calls) == 2 and far["y"].calls == []


# The same target again


@pytest.mark.parametrize("failure", [UpstreamTimeout(), UpstreamUnreachable(), UpstreamError(), UpstreamBusy(), "empty"])
async def test_one_more_try_of_the_same_target(
    make_house: MakeHouse, far: RemoteProvider, no_backoff: list[float], failure: Any
) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = [failure, "ok"]
    row = await told(house, "far/x")
    assert (row.status, row.fallback, len(far["x"].calls), len(no_backoff)) == ("ok", None, 2, 1)
    assert house.metric("aprendiz_attempts_total", model="far/x", outcome="ok") == 1
    assert idle(house, far) and house.manager._targets._budget.retrying == 0


async def test_no_more_tries_than_the_route_allows_then_the_next_target(
    make_house: MakeHouse, far: RemoteProvider, no_backoff: list[float]
) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", retries=2)})
    far["x"].script = [UpstreamUnreachable()]
    row = await told(house)
    assert (row.model, row.fallback, len(far["x"].calls)) == ("y", "upstream-unreachable", 3)


@pytest.mark.parametrize("failure", [UpstreamRefused(), UnknownModel("No such model there.")])
async def test_what_will_not_change_is_not_tried_again(make_house: MakeHouse, far: RemoteProvider, failure: Any) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = [failure, "ok"]
    with pytest.raises(type(failure)):
        await told(house, "far/x")
    assert len(far["x"].calls) == 1


async def test_an_engine_of_ours_is_not_asked_twice(make_house: MakeHouse) -> None:
    far = RemoteProvider("near", remote=False)
    house = await make_house(far, model="x")
    far["x"].script = [EngineUnavailable("It died."), "ok"]
    with pytest.raises(EngineUnavailable):
        await told(house, "default")
    assert len(far["x"].calls) == 1


async def test_a_pause_that_is_asked_for_is_waited_for_when_nobody_else_can_answer(
    make_house: MakeHouse, far: RemoteProvider
) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = [UpstreamBusy(retry_after=0.05), "ok"]
    began = time.monotonic()
    assert (await told(house, "far/x")).status == "ok"
    assert time.monotonic() - began >= 0.05
    assert len(far["x"].calls) == 2


@pytest.mark.parametrize("pause", [11.0, 3600.0])
async def test_a_long_pause_is_the_callers_to_wait_for(make_house: MakeHouse, far: RemoteProvider, pause: float) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = [UpstreamBusy(retry_after=pause)]
    with pytest.raises(UpstreamBusy) as caught:
        await told(house, "far/x")
    assert caught.value.retry_after == pause
    with pytest.raises(UpstreamCoolingDown) as cooling:
        await told(house, "far/x")
    assert cooling.value.retry_after is not None and 10 < cooling.value.retry_after <= 60
    assert len(far["x"].calls) == 1


async def test_retries_never_pass_a_fifth_of_the_calls_in_flight(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], upstreams=PLAIN, queue_per_user=1000)
    budget = house.manager._targets._budget
    most: list[tuple[int, int]] = []
    enter = budget.enter

    def watched(active: int) -> bool:
        taken = enter(active)
        most.append((budget.retrying, active))
        return taken

    budget.enter = watched  # type: ignore[method-assign]
    names = [f"m{number}" for number in range(40)]
    for name in names:
        far[name].script = [UpstreamUnreachable()]
    calls = [house.manager.answer(ask(model=f"far/{name}"), user()) for name in names for _ in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, UpstreamUnreachable) for result in results)
    assert len(most) == 120 and max(retrying for retrying, _ in most) > 3
    assert all(retrying <= max(3, active / 5) for retrying, active in most)
    assert budget.retrying == 0 and idle(house, far)


# The breaker


async def test_five_failures_leave_a_target_alone_and_no_other(
    make_house: MakeHouse, far: RemoteProvider, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    house = await make_house(None, clock, others=[far], routes={"r": route("far/x", "far/y")}, upstreams=PLAIN)
    far["x"].script = [UpstreamError()]
    for _ in range(8):
        assert (await told(house)).model == "y"
    assert len(far["x"].calls) == 5
    assert house.metric("aprendiz_breaker_state", model="far/x") == 2
    assert house.metric("aprendiz_breaker_state", model="far/y") == 0
    assert len([each for each in caplog.records if "left alone" in each.message]) == 1
    assert (await told(house)).fallback == "upstream-cooling-down"
    with pytest.raises(UpstreamCoolingDown) as caught:
        await house.manager.generate(ask(model="far/x"), user())
    assert caught.value.retry_after == 30
    clock.advance(30)
    house.manager.tick()
    assert house.metric("aprendiz_breaker_state", model="far/x") == 1
    far["x"].script = ["ok"]
    assert (await told(house)).model == "x"
    assert house.metric("aprendiz_breaker_state", model="far/x") == 0


async def test_of_a_crowd_one_probes_and_the_others_go_elsewhere(make_house: MakeHouse, far: RemoteProvider) -> None:
    clock = Clock()
    house = await make_house(None, clock, others=[far], routes={"r": route("far/x", "far/y")}, queue_per_user=500)
    far["x"].script = [UpstreamUnreachable()]
    for _ in range(5):
        await told(house)
    clock.advance(31)
    far["x"].script = ["hang"]
    calls = [asyncio.create_task(told(house)) for _ in range(50)]
    await until(lambda: sum(call.done() for call in calls) == 49)
    assert far["x"].running == 1
    far["x"].go.set()
    models = [(await call).model for call in calls]
    assert models.count("x") == 1


@pytest.mark.parametrize("how", ["leave", "never begun"])
async def test_a_probe_whose_client_leaves_does_not_keep_the_target_shut(
    make_house: MakeHouse, far: RemoteProvider, how: str
) -> None:
    clock = Clock()
    house = await make_house(None, clock, others=[far], upstreams=PLAIN)
    far["x"].script = [UpstreamRefused()]
    for _ in range(5):
        with pytest.raises(UpstreamRefused):
            await told(house, "far/x")
    clock.advance(30)
    far["x"].script = ["hang"]
    probe = await house.manager.generate(ask(model="far/x"), user())
    with pytest.raises(UpstreamCoolingDown):
        await house.manager.generate(ask(model="far/x"), user())
    if how == "never begun":
        async with probe:
            pass
    else:
        call = asyncio.create_task(consume(probe))
        await until(lambda: far["x"].running == 1)
        call.cancel()
        await asyncio.wait([call])
    far["x"].script = ["ok"]
    assert (await told(house, "far/x")).status == "ok"


async def test_a_cut_answer_is_a_failure_however_much_of_it_came(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = ["cut"]
    for _ in range(5):
        with pytest.raises(UpstreamError):
            await told(house, "far/x")
    with pytest.raises(UpstreamCoolingDown):
        await told(house, "far/x")


async def test_when_all_targets_cool_down_the_shortest_pause_is_told(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(None, Clock(), others=[far], routes={"r": route("far/x", "far/y")})
    far["x"].script, far["y"].script = [UpstreamBusy(retry_after=40)], [UpstreamBusy(retry_after=20)]
    with pytest.raises(UpstreamBusy):
        await told(house)
    with pytest.raises(UpstreamCoolingDown) as caught:
        await house.manager.generate(ask(model="r"), user())
    assert caught.value.retry_after == 20
    assert len(far["x"].calls) == len(far["y"].calls) == 1


async def test_an_open_breaker_gives_way_where_what_opened_it_does(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(None, Clock(), others=[far], routes={"r": route("far/x", "far/y", fallback_on=["timeout"])})
    far["x"].script = [UpstreamTimeout()]
    for _ in range(6):
        assert (await told(house)).model == "y"
    assert len(far["x"].calls) == 5


async def test_a_fresh_client_starts_with_a_fresh_breaker(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(far, model="x")
    far["x"].script = [UpstreamRefused()]
    for _ in range(5):
        with pytest.raises(UpstreamRefused):
            await told(house, "default")
    far["x"].script = ["ok"]
    await house.manager.reload(actor=None)
    assert (await told(house, "default")).status == "ok"


# Deadlines


async def test_the_deadline_holds_over_all_tries(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", "far/z", retries=5, deadline_s=0.3)})
    far["x"].script, far["y"].script, far["z"].script = [UpstreamUnreachable()], [UpstreamError()], ["hang"]
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout) as caught:
        await told(house)
    assert 0.2 < time.monotonic() - began < 1.3
    assert "0.3 seconds" in caught.value.detail
    [row] = house.predictions.rows.values()
    assert row.status == "error"
    assert idle(house, far)


async def test_the_deadline_of_a_route_counts_from_the_call_the_queue_too(make_house: MakeHouse) -> None:
    house = await make_house(ScriptedProvider(slots=1), routes={"r": route("default", deadline_s=0.1)})
    running = await house.manager.generate(ask(model="default"), user())
    with pytest.raises(Overloaded) as caught:
        await house.manager.generate(ask(model="r"), user())
    assert caught.value.retry_after
    assert house.manager.status().waiting == 0
    await consume(running)


async def test_the_deadline_holds_even_while_the_disk_hangs(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", deadline_s=0.05)})
    house.predictions.gate = asyncio.Event()
    far["x"].script = ["stall"]
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        await told(house)
    assert time.monotonic() - began < 1.05
    house.predictions.gate.set()
    await until(lambda: len(house.predictions.rows) == 1 and idle(house, far))


async def test_silence_for_most_of_the_deadline_speaks_against_the_target(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", deadline_s=0.02)}, upstreams=PLAIN)
    far["x"].script = ["hang"]
    for _ in range(5):
        with pytest.raises(UpstreamTimeout):
            await told(house)
    with pytest.raises(UpstreamCoolingDown):
        await told(house, "far/x")


async def test_a_long_answer_that_is_cut_by_the_deadline_does_not(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", deadline_s=0.02)}, upstreams=PLAIN)
    far["x"].script = [*["stall"] * 6, "ok"]
    for _ in range(6):
        with pytest.raises(UpstreamTimeout):
            await told(house)
    assert (await told(house, "far/x")).status == "ok"


# Leaving, and the end


@pytest.mark.parametrize("phase", ["asked", "waiting to try again", "waiting for a slot elsewhere"])
async def test_leaving_before_the_first_piece_leaves_nothing_behind(
    make_house: MakeHouse, far: RemoteProvider, phase: str
) -> None:
    full = ScriptedProvider(slots=1)
    house = await make_house(full, others=[far], routes={"r": route("far/x", "default", retries=1)})
    running = await house.manager.generate(ask(model="default"), user("bea"))
    acts: dict[str, Act] = {
        "asked": "hang",
        "waiting to try again": UpstreamError(),
        "waiting for a slot elsewhere": UpstreamRefused(),
    }
    far["x"].script = [acts[phase]]
    targets = house.manager._targets
    generation = await house.manager.generate(ask(model="r"), user())
    call = asyncio.create_task(consume(generation))
    reached: dict[str, Callable[[], bool]] = {
        "asked": lambda: far["x"].running == 1,
        "waiting to try again": lambda: targets._budget.retrying == 1,
        "waiting for a slot elsewhere": lambda: house.manager.status().waiting == 1,
    }
    await until(reached[phase])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert targets._budget.retrying == 0
    assert house.predictions.rows[generation.id].status == "cancelled"
    await consume(running)
    assert idle(house, far) and full.last("a").begun == ["one two three"]


async def test_the_shutdown_ends_a_call_between_two_tries(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], upstreams=PLAIN)
    far["x"].script = [UpstreamBusy(retry_after=9)]
    call = asyncio.create_task(told(house, "far/x"))
    await until(lambda: house.manager._targets._budget.retrying == 1)
    await house.manager.drain(0.01)
    with pytest.raises(ShuttingDown):
        await call
    assert idle(house, far) and house.manager._targets._budget.retrying == 0


async def test_a_thousand_faults_leave_no_task_no_slot_and_no_permit(make_house: MakeHouse, far: RemoteProvider) -> None:
    """B18: whatever fails, in whatever order, each call ends as one row, and nothing stays."""
    rng = random.Random(5)
    faults: list[Any] = [each for each, _ in FAILURES if not isinstance(each, RuntimeError)]
    faults += ["ok", "ok", "break", "cut", "hang", "stall"]
    house = await make_house(
        others=[far],
        routes={"r": route("far/x", "far/y", "far/z", strategy="weights", retries=1, deadline_s=0.2, hedge_s=0.005)},
        queue_per_user=2000,
        queue=2000,
    )
    logging.getLogger("app").setLevel(logging.CRITICAL)
    before = len(asyncio.all_tasks())
    try:
        for model in ("x", "y", "z"):
            far[model].script = [rng.choice(faults) for _ in range(2000)]
        await asyncio.gather(*(_one(house, rng, 0.3) for _ in range(1000)))
        await until(lambda: idle(house, far) and len(asyncio.all_tasks()) <= before)
    finally:
        logging.getLogger("app").setLevel(logging.NOTSET)
    assert house.manager._targets._budget.retrying == 0
    for deployment in house.manager._pool.all():
        breaker = deployment.breaker
        assert breaker is None or breaker._probe is None
    rows = house.predictions.rows.values()
    taken = sum(
        house.metric("aprendiz_predictions_total", model=f"far/{name}", status=each)
        for name in "xyz"
        for each in ("ok", "error", "cancelled")
    )
    assert len(rows) == taken


async def _one(house: House, rng: random.Random, leaving: float) -> None:
    await asyncio.sleep(rng.random() * 0.3)
    call = asyncio.create_task(house.manager.answer(ask(model="r"), user()))
    if rng.random() < leaving:
        await asyncio.sleep(rng.random() * 0.03)
        call.cancel()
    await asyncio.wait([call])
    error = None if call.cancelled() else call.exception()
    assert error is None or isinstance(error, AprendizError)


# A second target beside a silent one


async def test_nobody_is_asked_twice_unless_the_route_says_so(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y")})
    far["x"].script = ["hang"]
    call = asyncio.create_task(told(house))
    await until(lambda: far["x"].running == 1)
    await asyncio.sleep(0.03)
    assert far["y"].calls == []
    far["x"].go.set()
    assert (await call).model == "x"


async def test_a_silent_target_is_overtaken_and_let_go(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", hedge_s=0.01)})
    far["x"].script = ["hang"]
    row = await told(house)
    assert (row.model, row.fallback) == ("y", "hedged")
    await until(lambda: idle(house, far))
    assert house.metric("aprendiz_attempts_total", model="far/x", outcome="cancelled") == 1
    assert house.manager._targets._budget.retrying == 0


async def test_the_first_may_still_win(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", hedge_s=0.01)})
    far["x"].script, far["y"].script = ["hang"], ["hang"]
    call = asyncio.create_task(told(house))
    await until(lambda: far.running == 2)
    far["x"].go.set()
    row = await call
    assert (row.model, row.fallback) == ("x", None)
    await until(lambda: idle(house, far))


async def test_a_race_goes_on_with_one_when_the_other_fails(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", "far/z", hedge_s=0.01)})
    far["x"].script, far["y"].script = ["hang"], [UpstreamError()]
    call = asyncio.create_task(told(house))
    await until(lambda: len(far["y"].calls) == 1 and far["y"].running == 0)
    far["x"].go.set()
    assert (await call).model == "x"
    far["x"].go.clear()
    far["x"].script, far["y"].script = [UpstreamTimeout()], ["ok"]
    row = await told(house)
    assert (row.model, row.fallback) == ("y", "upstream-timeout"), "the first failed at once: no race"
    await until(lambda: idle(house, far))


async def test_when_both_fail_the_third_is_asked(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", "far/z", hedge_s=0.01)})
    far["x"].script, far["y"].script = [Later(UpstreamUnreachable())], [UpstreamError()]
    call = asyncio.create_task(told(house))
    await until(lambda: len(far["y"].calls) == 1 and far["y"].running == 0)
    assert not call.done()
    far["x"].go.set()
    row = await call
    assert (row.model, row.fallback) == ("z", "upstream-unreachable")
    await until(lambda: idle(house, far))
    for model in "xyz":
        assert len(far[model].calls) == 1


async def test_a_second_that_wins_after_the_first_failed_is_a_fallback(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", hedge_s=0.01)})
    far["x"].script, far["y"].script = [Later(UpstreamRefused())], ["hang"]
    call = asyncio.create_task(told(house))
    await until(lambda: far.running == 2)
    far["x"].go.set()
    await until(lambda: far["x"].running == 0)
    far["y"].go.set()
    row = await call
    assert (row.model, row.fallback) == ("y", "upstream-refused")
    assert house.metric("aprendiz_attempts_total", model="far/x", outcome="refused") == 1
    await until(lambda: idle(house, far))


async def test_a_race_needs_a_place_in_the_retry_budget(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", hedge_s=0.01)})
    house.manager._targets._budget._retrying = 3
    far["x"].script = ["hang"]
    call = asyncio.create_task(told(house))
    await until(lambda: far["x"].running == 1)
    await asyncio.sleep(0.05)
    assert far["y"].calls == []
    far["x"].go.set()
    assert (await call).model == "x"
    assert house.manager._targets._budget.retrying == 3


async def test_leaving_a_race_ends_both(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y", hedge_s=0.01)})
    far["x"].script, far["y"].script = ["hang"], ["hang"]
    call = asyncio.create_task(told(house))
    await until(lambda: far.running == 2)
    call.cancel()
    await asyncio.wait([call])
    await until(lambda: idle(house, far))
    [row] = house.predictions.rows.values()
    assert row.status == "cancelled"


# Many at once


async def test_clients_of_providers_do_not_push_engines_out(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], upstreams=PLAIN, max_loaded=1)
    await told(house, "default")
    for number in range(300):
        await told(house, f"far/m{number}")
    await told(house, "default")
    assert house.scripted.tries == 1, "the engine was never unloaded"
    await until(lambda: sum(not model.closed for model in far.models.values()) <= 256)
    assert far["m0"].closed, "but callers cannot pile up clients without end"
    assert not far["m299"].closed


async def test_vectors_and_counts_come_from_the_first_target_only(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], routes={"r": route("far/x", "far/y")}, upstreams=PLAIN)
    vectors, model = await house.manager.embed(EmbeddingRequest(("a", "bb"), "r"), user())
    assert (vectors.vectors, model) == (((1.0,), (2.0,)), "far/x")
    far["x"].script = [UpstreamError()]
    for _ in range(5):
        with pytest.raises(UpstreamError):
            await house.manager.embed(EmbeddingRequest(("a",), "r"), user())
    with pytest.raises(UpstreamCoolingDown):
        await house.manager.embed(EmbeddingRequest(("a",), "r"), user())
    with pytest.raises(InvalidRequest):
        await house.manager.embed(EmbeddingRequest(("a",), "default"), user())
    assert await house.manager.count_tokens(ask("one two three", model="far/y"), user()) == 3
    assert idle(house, far)


async def test_an_embedding_has_a_deadline(make_house: MakeHouse, far: RemoteProvider) -> None:
    house = await make_house(others=[far], upstreams=PLAIN, answer_timeout_s=0.02)
    far["x"].script = ["hang"]
    with pytest.raises(UpstreamTimeout):
        await house.manager.embed(EmbeddingRequest(("a",), "far/x"), user())
    assert idle(house, far)
