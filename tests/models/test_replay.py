"""Calls that get an answer again, and what calls cost: the cache and the ledger between a request and its model."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from app.core.errors import BudgetExhausted, ShuttingDown, StorageFull, UpstreamError
from app.core.ids import uuid7
from app.core.settings import Cache, Costs
from app.core.types import EmbeddingRequest, Embeddings, Event, Finished, GenerationRequest, Message, TextDelta
from app.models.cache import ResponseCache
from app.models.costs import Ledger
from app.models.generation import Completed, Generation
from app.models.model_manager import ModelManager, ModelStores
from app.models.replay import Replay
from tests.models.doubles import TIMEOUT_S, Clock, Registry, ScriptedModel, ask, spec, until, user
from tests.models.doubles import House as PlainHouse


class House(PlainHouse):
    """With a cache, and a price of a cent a token of an answer."""

    def __init__(self, *, cache: dict[str, Any] | None = None, costs: dict[str, Any] | None = None, **more: Any) -> None:
        self.cache_settings, self.costs = Cache(**(cache or {})), Costs(**(costs or {}))
        self.cache_clock = Clock()
        super().__init__(**more)

    def build(self) -> ModelManager:
        self.cache = ResponseCache(self.cache_settings, metrics=self.metrics, waiting=100, wait_s=100, clock=self.cache_clock)
        return ModelManager(
            self.settings,
            providers=Registry(self.provider),
            stores=ModelStores(self.predictions, self.versions, self.aliases, self.audit),
            metrics=self.metrics,
            cache=self.cache,
            ledger=Ledger(self.costs, self),
        )

    async def spent(self, **asked: Any) -> list[tuple[int, int]]:
        """A user's money that is stored, as of now."""
        stored = self.predictions.rows.values()
        rows = [row for row in stored if row.user_id == asked["user_id"] and row.id not in asked["without"]]
        return [(int(time.time() * 1000) >> asked["slice_bits"], sum(row.cost_nanousd or 0 for row in rows))]

    @property
    def model(self) -> ScriptedModel:
        return self.scripted.last("a")

    def count(self, result: str) -> float:
        return self.metric("aprendiz_cache_total", result=result)


@pytest.fixture
async def make_house() -> Any:
    houses: list[House] = []

    async def make(**settings: Any) -> House:
        houses.append(House(**settings))
        await houses[-1].manager.start()
        return houses[-1]

    yield make
    for house in houses:
        await house.manager.aclose()
        assert house.scripted.alive == []


def greedy(text: str = "one two", **more: Any) -> GenerationRequest:
    sampling = {name: more.pop(name) for name in ("temperature", "seed", "max_tokens") if name in more}
    return dataclasses.replace(ask(text, **{"temperature": 0, **sampling}), **more)


async def events_of(generation: Generation) -> list[Event | Completed]:
    async with generation:
        return [event async for event in generation.events()]


async def test_the_same_question_again_is_a_prediction_of_its_own_at_no_price(make_house: Any) -> None:
    house = await make_house(costs={"prices": {"scripted/*": {"output": 10_000}}}, system_prompt="Be brief.")
    first = await house.manager.answer(greedy(max_tokens=9), user())
    door = {"x": 1}
    request = greedy(max_tokens=9, conversation_id="c", request_id="r2", door=door, prediction_id=uuid7())
    generation = await house.manager.generate(request, dataclasses.replace(user(), key_id="k"))
    assert isinstance(generation, Replay) and generation.cached
    assert (generation.id, generation.model, generation.version) == (request.prediction_id, "scripted/a", "a-base")
    assert (generation.conversation_id, generation.fallback) == ("c", None)
    events = await events_of(generation)
    assert [type(event) for event in events] == [TextDelta, Finished, Completed]
    last = events[-1]
    assert isinstance(last, Completed)
    row = house.predictions.rows[generation.id]
    assert last.prediction == row and last.answer == first.answer
    assert house.model.begun == ["one two"]
    same = ("user_id", "provider", "model", "version", "output", "finish_reason", "prompt_tokens", "completion_tokens")
    for name in (*same, "status", "tool_calls", "alias", "reasoning"):
        assert getattr(row, name) == getattr(first.prediction, name), name
    assert row.input == {**first.prediction.input, "door": door}
    assert row.input["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (row.cached, row.cost_nanousd, row.key_id, row.request_id) == (True, 0, "k", "r2")
    assert (first.prediction.cached, first.prediction.cost_nanousd) == (False, 20_000_000)
    assert house.manager.status().running == 0
    assert house.metric("aprendiz_predictions_total", model="scripted/a", status="ok") == 2
    assert house.metric("aprendiz_tokens_total", model="scripted/a", kind="completion") == 2


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        ({}, {}, True),
        ({"temperature": None, "seed": 1}, {"temperature": None, "seed": 1}, True),
        ({"temperature": None, "seed": 1}, {"temperature": None, "seed": 2}, False),
        ({"temperature": None}, {"temperature": None}, False),
        ({"temperature": 0.5}, {"temperature": 0.5}, False),
        ({"temperature": 0.5, "cache": "use"}, {"temperature": 0.5, "cache": "use"}, True),
        ({"temperature": 0.5, "cache": "refresh"}, {"temperature": 0.5, "cache": "use"}, True),
        ({"temperature": 0.5, "cache": "use"}, {"temperature": 0.5}, False),
        ({}, {"cache": "off"}, False),
        ({"cache": "off"}, {}, False),
        ({}, {"cache": "refresh"}, False),
        ({}, {"cache": "use", "max_age_s": 5}, True),
        ({}, {"max_tokens": 3}, False),
        ({}, {"model": "scripted/a"}, True),
        ({}, {"messages": (Message("system", "Be kind."), Message("user", "one two"))}, False),
    ],
)
async def test_when_an_answer_is_given_again(
    make_house: Any, first: dict[str, Any], second: dict[str, Any], cached: bool
) -> None:
    house = await make_house()
    await house.manager.answer(greedy(**first), user())
    again = await house.manager.answer(greedy(**second), user())
    assert again.prediction.cached is cached
    assert house.count("hit") == cached


async def test_a_default_temperature_of_zero_counts(make_house: Any) -> None:
    house = await make_house(temperature=0)
    await house.manager.answer(ask("one"), user())
    assert (await house.manager.answer(ask("one"), user())).prediction.cached
    assert not (await house.manager.answer(ask("one", temperature=0.1), user())).prediction.cached


async def test_another_user_asks_by_himself(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user("ana"))
    theirs = await house.manager.answer(greedy(), user("bea"))
    assert not theirs.prediction.cached
    assert (house.count("hit"), house.count("miss")) == (0, 2)


async def test_without_time_to_live_there_is_no_cache(make_house: Any) -> None:
    house = await make_house(cache={"ttl_s": 0})
    for _ in range(2):
        assert not (await house.manager.answer(greedy(cache="use"), user())).prediction.cached
    assert house.count("bypass") == house.count("miss") == 0


async def test_old_answers_are_asked_for_anew(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user())
    house.cache_clock.advance(10)
    assert (await house.manager.answer(greedy(cache="use", max_age_s=10), user())).prediction.cached
    assert not (await house.manager.answer(greedy(cache="use", max_age_s=9), user())).prediction.cached
    house.cache_clock.advance(300)
    assert not (await house.manager.answer(greedy(), user())).prediction.cached


async def test_fifty_at_once_ask_the_model_once(make_house: Any) -> None:
    house = await make_house()
    calls = [asyncio.create_task(house.manager.answer(greedy(), user())) for _ in range(50)]
    async with asyncio.timeout(TIMEOUT_S):
        answers = await asyncio.gather(*calls)
    assert house.model.begun == ["one two"]
    assert len({each.prediction.id for each in answers}) == 50 == len(house.predictions.rows)
    assert sum(each.prediction.cached for each in answers) == 49
    assert {each.answer.text for each in answers} == {"a:one a:two "}
    assert (house.count("miss"), house.count("wait")) == (1, 49)
    assert house.manager.status().running == house.manager.status().waiting == 0


@pytest.mark.parametrize("how", ["leaves", "fails", "is not stored"])
async def test_when_the_first_comes_to_nothing_another_becomes_the_first(make_house: Any, how: str) -> None:
    house = await make_house()
    await house.manager.answer(ask("warm up"), user())
    house.model.gate.clear()
    first = asyncio.create_task(house.manager.answer(greedy(), user()))
    await until(lambda: house.model.running == 1)
    others = [asyncio.create_task(house.manager.answer(greedy(), user())) for _ in range(9)]
    for _ in range(5):
        await asyncio.sleep(0)
    if how == "leaves":
        first.cancel()
    elif how == "fails":
        house.model.error = UpstreamError("Bad.")
        house.model.gate.set()
        await until(first.done)
        house.model.error = None
    else:
        house.predictions.error = StorageFull("Full.")
        house.model.gate.set()
        await until(first.done)
        house.predictions.error = None
    house.model.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.wait([first])
        found = await asyncio.gather(*others, return_exceptions=True)
    whole = [each for each in found if isinstance(each, Completed)]
    # Who became the first may have met the same fault before it ended; after it nobody has.
    assert len(whole) >= 8
    assert sum(not each.prediction.cached for each in whole) == 1
    assert house.manager.status().running == 0 and not house.cache._flights and not house.cache._leases


async def test_a_waiting_client_that_leaves_leaves_nothing_behind(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(ask("warm up"), user())
    house.model.gate.clear()
    first = asyncio.create_task(house.manager.answer(greedy(), user()))
    await until(lambda: house.model.running == 1)
    others = [asyncio.create_task(house.manager.answer(greedy(), user())) for _ in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    house.model.gate.set()
    assert not (await first).prediction.cached
    assert len(house.predictions.rows) == 2
    assert house.cache._waiting == 0


async def test_a_service_that_ends_refuses_who_waits_for_another(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(ask("warm up"), user())
    house.model.gate.clear()
    first = asyncio.create_task(house.manager.answer(greedy(), user()))
    await until(lambda: house.model.running == 1)
    waiting = asyncio.create_task(house.manager.answer(greedy(), user()))
    for _ in range(5):
        await asyncio.sleep(0)
    draining = asyncio.create_task(house.manager.drain(10))
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ShuttingDown):
            await waiting
        house.model.gate.set()
        assert (await first).prediction.status == "ok"
        await draining


async def test_a_refused_call_lets_the_next_ask(make_house: Any) -> None:
    house = await make_house(slots=1, queue=0)
    house.scripted.slots = 1
    house.scripted.gate.clear()
    calls = [asyncio.create_task(house.manager.answer(greedy(f"q{n % 2}"), user())) for n in range(4)]
    for _ in range(20):
        await asyncio.sleep(0)
    house.scripted.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*calls, return_exceptions=True)
    assert not house.cache._flights and not house.cache._leases


async def test_a_replay_that_is_left_or_not_stored(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user())
    async with await house.manager.generate(greedy(), user()):
        pass
    assert len(house.predictions.rows) == 1
    house.predictions.error = StorageFull("Full.")
    with pytest.raises(StorageFull):
        await house.manager.answer(greedy(), user())
    house.predictions.error = None
    house.predictions.gate = asyncio.Event()
    leaving = asyncio.create_task(house.manager.answer(greedy(), user()))
    await until(lambda: house.count("hit") == 3)
    for _ in range(5):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    house.predictions.gate.set()
    await until(lambda: len(house.predictions.rows) == 2)


async def test_a_switch_forgets_what_no_alias_means_any_more(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user())
    await until(lambda: "default" in house.aliases.rows)
    size = house.metric("aprendiz_cache_bytes")
    assert size > 0
    await house.manager.switch(spec("b"), actor=None, alias="second")
    await house.manager.answer(greedy(model="second"), user())
    assert house.metric("aprendiz_cache_bytes") > size
    await house.manager.switch(spec("b"), actor=None)
    assert 0 < house.metric("aprendiz_cache_bytes") <= size
    again = await house.manager.answer(greedy(), user())
    assert again.answer.text == "b:one b:two "
    await house.manager.rollback(actor=None)
    assert house.metric("aprendiz_cache_bytes") > 0  # `second` still means it
    back = await house.manager.answer(greedy(), user())
    assert not back.prediction.cached and back.answer.text == "a:one a:two "


async def test_other_files_under_the_same_name_are_another_version(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user())
    await until(lambda: "default" in house.aliases.rows)
    house.scripted.hashes["a"] = "changed"
    await house.manager.reload(actor=None)
    assert house.metric("aprendiz_cache_bytes") == 0
    assert not (await house.manager.answer(greedy(), user())).prediction.cached
    assert (await house.manager.answer(greedy(), user())).prediction.version == "changed-base"


async def test_an_answer_that_is_being_given_during_a_switch_is_not_kept(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(ask("warm up"), user())
    await until(lambda: "default" in house.aliases.rows)
    house.model.gate.clear()
    running = asyncio.create_task(house.manager.answer(greedy(), user()))
    old = house.model
    await until(lambda: old.running == 1)
    await house.manager.switch(spec("b"), actor=None)
    old.gate.set()
    await running
    assert house.metric("aprendiz_cache_bytes") == 0


async def test_a_cached_answer_needs_no_engine(make_house: Any) -> None:
    house = await make_house()
    await house.manager.answer(greedy(), user())
    await until(lambda: "default" in house.aliases.rows)
    house.manager._pool.discard(house.manager._pool.find(spec("a")))
    await until(lambda: house.scripted.alive == [])
    assert (await house.manager.answer(greedy(), user())).prediction.cached
    assert house.scripted.alive == []


async def test_erasure_forgets_a_users_answers(make_house: Any) -> None:
    house = await make_house()
    for name in ("ana", "bea"):
        await house.manager.answer(greedy(), user(name))
    await house.manager.forget_answers("ana")
    assert not (await house.manager.answer(greedy(), user("ana"))).prediction.cached
    assert (await house.manager.answer(greedy(), user("bea"))).prediction.cached


PRICED = {"prices": {"scripted/*": {"output": 10_000}}, "budgets": {"user": "0.05/day"}}
"""A cent a word."""


async def test_a_budget_stops_before_the_model_is_asked(make_house: Any) -> None:
    house = await make_house(costs=PRICED)
    for text in ("one two", "three four", "five six"):
        await house.manager.answer(ask(text, max_tokens=2), user())
    with pytest.raises(BudgetExhausted):
        await house.manager.answer(ask("seven", max_tokens=2), user())
    assert house.model.begun == ["one two", "three four", "five six"]
    assert house.metric("aprendiz_rejected_total", reason="budget-exhausted") == 1
    assert [row.cost_nanousd for row in house.predictions.rows.values()] == [20_000_000] * 3
    await house.manager.answer(ask("seven", max_tokens=2), user("bea"))


async def test_what_the_cache_has_is_given_although_the_budget_is_spent(make_house: Any) -> None:
    house = await make_house(costs=PRICED)
    await house.manager.answer(greedy("one two three four five", max_tokens=5), user())
    assert (await house.manager.answer(greedy("one two three four five", max_tokens=5), user())).prediction.cost_nanousd == 0
    with pytest.raises(BudgetExhausted):
        await house.manager.answer(greedy("more", max_tokens=5), user())
    assert not house.cache._flights


async def test_fifty_at_once_cannot_pass_a_budget_together(make_house: Any) -> None:
    house = await make_house(costs=PRICED)
    calls = [asyncio.create_task(house.manager.answer(ask(f"a b {n}", max_tokens=3), user())) for n in range(50)]
    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, Completed) for each in found) == 2
    assert sum(isinstance(each, BudgetExhausted) for each in found) == 48
    spent = sum(row.cost_nanousd or 0 for row in house.predictions.rows.values())
    assert spent == 60_000_000


async def test_what_a_cancelled_answer_produced_is_paid(make_house: Any) -> None:
    house = await make_house(costs=PRICED)
    generation = await house.manager.generate(ask("one two three four", max_tokens=4), user())
    async with generation:
        async for _ in generation.events():
            break
    row = house.predictions.rows[generation.id]
    assert (row.status, row.cost_nanousd) == ("cancelled", 10_000_000)
    (account,) = house.manager._calls._desk.ledger._accounts.values()
    assert (account.held, account._spent) == (0, 10_000_000)


async def test_a_refused_call_gives_back_what_was_set_aside(make_house: Any) -> None:
    house = await make_house(costs=PRICED)
    for _ in range(3):
        with pytest.raises(Exception, match="400 tokens"):
            await house.manager.answer(ask("word " * 400, max_tokens=2), user())
    (account,) = house.manager._calls._desk.ledger._accounts.values()
    assert (account.held, account.open) == (0, {})


async def test_vectors_are_paid_too(make_house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await make_house(costs={"prices": {"scripted/*": {"input": 10_000}}, "budgets": {"user": "0.05/day"}})

    async def embed(self: ScriptedModel, request: EmbeddingRequest) -> Embeddings:
        return Embeddings(tuple((1.0,) for _ in request.inputs), prompt_tokens=3)

    monkeypatch.setattr(ScriptedModel, "embed", embed)
    for _ in range(2):
        await house.manager.embed(EmbeddingRequest(("one", "two")), user())
    with pytest.raises(BudgetExhausted):
        await house.manager.embed(EmbeddingRequest(("three",)), user())
    with pytest.raises(BudgetExhausted):
        await house.manager.answer(ask("one"), user())
    assert house.manager.status().running == 0
