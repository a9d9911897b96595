"""Prices to the billionth, and budgets that stop the right call: one by one, many at once, and after a restart."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import pytest

from app.core.errors import BudgetExhausted, StorageFull, StorageUnavailable
from app.core.ids import uuid7
from app.core.settings import Costs, Price
from app.core.types import GenerationRequest, Message, Principal, Sampling, Usage
from app.db.database import Database
from app.db.predictions import Predictions
from app.models.costs import NANO, Budget, Hold, Ledger, most_tokens
from app.models.prices import Prices, Rates, matches
from tests.db import make
from tests.models.doubles import TIMEOUT_S, Clock, user

WALL_S = 1_800_000_000.0
DAY_S = 86_400.0


def exactly(price: Price, usage: Usage) -> int:
    """The same by hand: a second way to the number."""
    million = 10**6
    parts = (
        (usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens, price.input),
        (usage.cached_tokens, price.input if price.cached_input is None else price.cached_input),
        (usage.cache_write_tokens, price.input if price.cache_write is None else price.cache_write),
        (usage.completion_tokens, price.output),
    )
    dollars = sum((Decimal(repr(float(rate))) * tokens for tokens, rate in parts), Decimal(0)) / million
    return int((dollars * NANO).quantize(Decimal(1), rounding="ROUND_HALF_UP"))


@pytest.mark.parametrize(
    ("price", "usage", "expected"),
    [
        (Price(input=2.5, output=10), Usage(1000, 100), 3_500_000),
        (Price(input=0.1, output=0.2), Usage(1, 1), 300),
        (Price(input=2.5, output=10, cached_input=1.25), Usage(1000, 0, cached_tokens=400), 2_000_000),
        (Price(input=3, output=15, cached_input=0.3, cache_write=3.75), Usage(1000, 10, 600, 300), 1_755_000),
        (Price(input=3, output=15), Usage(1000, 0, 600, 300), 3_000_000),
        (Price(input=0.0001, output=0), Usage(5, 0), 1),  # half a nano-dollar goes up
        (Price(input=0.0001, output=0), Usage(4, 0), 0),
        (Price(), Usage(10**6, 10**6), 0),
        (Price(input=100_000, output=100_000), Usage(2**31, 2**31), 2 * 2**31 * 100_000_000),
        (Price(input=1, output=1), Usage(10, 0, cached_tokens=40), 40_000),  # a vendor that counts them beside
    ],
)
def test_the_price_of_a_call(price: Price, usage: Usage, expected: int) -> None:
    assert Rates.of(price).cost(usage) == expected
    if usage.cached_tokens <= usage.prompt_tokens:
        assert exactly(price, usage) == expected


def test_a_million_calls_add_up_without_drift() -> None:
    rates = Rates.of(Price(input=0.15, output=0.6))
    assert sum(rates.cost(Usage(1, 1)) for _ in range(10_000)) == 10_000 * 750
    # What a float makes of it: 0.15 * 3 / 1e6 * 1e9 != 450
    assert [rates.cost(Usage(n, 0)) for n in range(2000)] == [150 * n for n in range(2000)]


@pytest.mark.parametrize("tokens", [(0, 0), (1, 1), (1000, 10), (10, 1000)])
def test_no_call_of_a_size_costs_more_than_is_set_aside(tokens: tuple[int, int]) -> None:
    prompt, answer = tokens
    for price in (Price(input=1, output=2, cached_input=5), Price(input=3, cache_write=9), Price(input=0.00001, output=0.3)):
        rates = Rates.of(price)
        for cached in (0, prompt // 2, prompt):
            assert rates.cost(Usage(prompt, answer, cached_tokens=cached)) <= rates.most(prompt, answer)
            assert rates.cost(Usage(prompt, answer, cache_write_tokens=cached)) <= rates.most(prompt, answer)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("openai/gpt-5", "openai/gpt-5", True),
        ("openai/gpt-5", "openai/gpt-5-mini", False),
        ("openai/*", "openai/gpt-5", True),
        ("openai/*", "openai", False),
        ("*", "", True),
        ("*", "a/b", True),
        ("*/gpt-5*", "azure/gpt-5-mini", True),
        ("*mini", "openai/gpt-mini", True),
        ("*mini", "openai/gpt-minix", False),
        ("a*b*c", "a/b/c", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("a**b", "ab", True),
        ("a.c", "abc", False),
        ("a?c[x]", "a?c[x]", True),
        ("A/*", "a/b", False),
        ("*aab*", "aaab", True),
    ],
)
def test_patterns_match_all_of_a_name(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_a_pattern_of_many_stars_takes_no_long_time() -> None:
    assert not matches("*a" * 2000 + "b", "a" * 20_000)


def test_the_longest_match_wins() -> None:
    names = ["*", "openai/*", "openai/gpt-5*", "openai/gpt-5", "*-mini"]
    prices = Prices({name: Price(input=n) for n, name in enumerate(names, 1)})
    asked = ["x/y", "openai/o3", "openai/gpt-5-pro", "openai/gpt-5", "x/y-mini", "openai/gpt-5-mini"]
    found = [prices.of(name) for name in asked]
    assert [rates and int(rates.input / 1000) for rates in found] == [1, 2, 3, 4, 5, 3]
    assert prices.of("openai/gpt-5") is prices.of("openai/gpt-5")
    assert Prices({"openai/*": Price()}).of("claude/x") is None
    assert Prices({}).of("claude/x") is None


def test_names_of_callers_fill_no_memory() -> None:
    prices = Prices({"*": Price(input=1)})
    for n in range(3000):
        assert prices.of(f"openai/{n}") is not None
    assert len(prices._found) <= 1024


@pytest.mark.parametrize(
    ("text", "limit", "window_s"),
    [("2.50/day", 2_500_000_000, 86_400), ("0.000001/hour", 1000, 3600), ("999999999/month", 999999999 * NANO, 2_592_000)],
)
def test_a_budget_in_words(text: str, limit: int, window_s: int) -> None:
    budget = Budget.of("user", text)
    assert (budget.limit, budget.window_s) == (limit, window_s)


class Store:
    """Spending in memory: ``(user, key, id, at_ms, cost)``. ``gate`` holds reads back."""

    def __init__(self, *rows: tuple[str, str | None, str, int, int]) -> None:
        self.rows = list(rows)
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def spent(
        self,
        *,
        since_ms: int,
        until_ms: int,
        slice_bits: int,
        user_id: str | None = None,
        key_id: str | None = None,
        without: Collection[str] = (),
    ) -> Sequence[tuple[int, int]]:
        self.reads += 1
        rows = list(self.rows)  # one snapshot, as a database has it
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        found: dict[int, int] = {}
        for whose, key, identifier, at_ms, cost in rows:
            if (
                since_ms <= at_ms < until_ms
                and user_id in (None, whose)
                and key_id in (None, key)
                and identifier not in without
            ):
                found[at_ms >> slice_bits] = found.get(at_ms >> slice_bits, 0) + cost
        return sorted(found.items())


class House:
    """A ledger, its store, and both clocks. A token of an answer costs a cent; prompts cost nothing."""

    def __init__(self, *rows: tuple[str, str | None, str, int, int], **budgets: str) -> None:
        self.store = Store(*rows)
        self.wall, self.clock = Clock(), Clock()
        self.wall.now = WALL_S
        costs = Costs(prices={"openai/*": Price(output=10_000)}, budgets=budgets)
        self.ledger = Ledger(costs, self.store, wall_s=self.wall, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.clock.advance(seconds)

    async def admit(self, who: Principal | None = None, tokens: int | None = 10, model: str = "openai/m") -> Hold:
        return await self.ledger.admit(ask(tokens), who or user(), [model], uuid7(now_ms=int(self.wall() * 1000)))

    async def call(self, cents: int, who: Principal | None = None) -> None:
        """A call from its begin to its end, stored."""
        who = who or user()
        hold = await self.admit(who, cents)
        self.keep(hold, cents, who)
        hold.settle(cents * NANO // 100)

    def keep(self, hold: Hold, cents: int, who: Principal | None = None) -> None:
        who = who or user()
        called_ms = int(hold.prediction_id.replace("-", "")[:12], 16)
        self.store.rows.append((who.user_id, who.key_id, hold.prediction_id, called_ms, cents * NANO // 100))


def ask(tokens: int | None = 10, text: str = "hi") -> GenerationRequest:
    return GenerationRequest((Message("user", text),), sampling=Sampling(max_tokens=tokens))


def with_key(name: str, key_id: str) -> Principal:
    return dataclasses.replace(user(name), via="key", key_id=key_id)


async def test_without_budgets_nothing_is_asked() -> None:
    house = House()
    for _ in range(3):
        (await house.admit()).settle(10**12)
    assert house.store.reads == 0
    assert house.ledger.cost("openai/m", Usage(5, 2)) == 2 * NANO // 100
    assert house.ledger.cost("echo/echo", Usage(5, 2)) is None


async def test_a_budget_stops_the_call_after_the_one_that_spent_it() -> None:
    house = House(user="0.25/day")
    await house.call(10)
    await house.call(10)
    await house.call(10)  # there was room for a part of it: what it costs is known when it ends
    with pytest.raises(BudgetExhausted) as caught:
        await house.admit()
    assert caught.value.detail == "Your budget is spent: 0.25 US dollars a day. It has room again in 24 hours."
    assert caught.value.retry_after is not None and DAY_S <= caught.value.retry_after <= DAY_S + 1100
    await house.call(10, user("bea"))


async def test_what_costs_nothing_is_not_stopped() -> None:
    house = House(total="0/day")
    (await house.admit(model="echo/echo")).settle(None)
    with pytest.raises(BudgetExhausted) as caught:
        await house.admit()
    assert caught.value.retry_after == DAY_S


async def test_of_many_at_once_only_those_pass_for_whom_there_is_money() -> None:
    house = House(user="0.25/day")
    house.store.gate.clear()
    calls = [asyncio.create_task(house.admit()) for _ in range(50)]
    await asyncio.sleep(0)
    house.store.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        found = await asyncio.gather(*calls, return_exceptions=True)
    holds = [each for each in found if isinstance(each, Hold)]
    refusals = [each for each in found if isinstance(each, BudgetExhausted)]
    assert (len(holds), len(refusals)) == (3, 47)
    assert house.store.reads == 1
    assert "set aside for calls that are still open" in refusals[0].detail
    assert refusals[0].retry_after is not None and refusals[0].retry_after < 10
    for hold in holds:
        hold.settle(NANO // 100)  # they were cheaper than feared
        hold.settle(10 * NANO)
    await house.admit()


async def test_the_key_the_user_and_the_whole_have_budgets_of_their_own() -> None:
    house = House(total="1/day", user="0.5/day", key="0.2/day")
    first, second = with_key("ana", "k1"), with_key("ana", "k2")
    await house.call(20, first)
    with pytest.raises(BudgetExhausted, match=r"of this API key is spent: 0.2 US dollars a day"):
        await house.admit(first)
    await house.call(20, second)
    await house.call(10)
    with pytest.raises(BudgetExhausted, match=r"Your budget is spent"):
        await house.admit()
    await house.call(50, user("bea"))
    with pytest.raises(BudgetExhausted, match=r"budget of this service is spent"):
        await house.admit(user("eva"))
    assert house.store.reads <= 8


async def test_the_window_moves() -> None:
    house = House(user="0.25/hour")
    await house.call(20)
    house.advance(1800)
    await house.call(20)
    with pytest.raises(BudgetExhausted) as caught:
        await house.admit()
    assert caught.value.retry_after is not None and 1700 < caught.value.retry_after < 1900
    house.advance(caught.value.retry_after)
    await house.call(5)
    with pytest.raises(BudgetExhausted, match="minutes"):
        await house.admit()
    house.advance(1850)
    await house.call(5)


async def test_money_ages_between_two_readings_too() -> None:
    house = House(user="0.25/hour")
    await house.call(25)
    house.wall.advance(3700)  # the readings' clock stands still
    await house.call(1)
    assert house.store.reads == 1


async def test_what_others_spend_counts_after_half_a_minute() -> None:
    house = House(user="0.25/day")
    await house.call(1)
    house.store.rows.append(("ana", None, "of another process", int(WALL_S * 1000) + 5, NANO))
    await house.call(1)
    house.advance(31)
    with pytest.raises(BudgetExhausted):
        await house.admit()
    assert house.store.reads == 2


async def test_a_store_that_reads_slowly_is_read_less_often() -> None:
    house = House(user="0.25/day")
    house.store.gate.clear()
    first = asyncio.create_task(house.admit())
    await asyncio.sleep(0)
    house.advance(2)
    house.store.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        (await first).settle(0)
    for seconds, reads in ((90, 1), (10, 2), (31, 3)):
        house.advance(seconds)
        (await house.admit()).settle(0)
        assert house.store.reads == reads


@pytest.mark.parametrize("stored", ["before", "during", "after"])
async def test_a_call_that_ends_while_the_store_is_read_counts_once(stored: str) -> None:
    house = House(user="0.30/day")
    hold = await house.admit(tokens=10)
    house.advance(31)
    if stored == "before":
        house.keep(hold, 10)
    house.store.gate.clear()
    reading = asyncio.create_task(house.admit(tokens=10))
    await asyncio.sleep(0)
    if stored != "before":
        house.keep(hold, 10)
    if stored != "after":
        hold.settle(NANO // 10)
    house.store.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        second = await reading
    hold.settle(NANO // 10)
    house.keep(second, 10)
    second.settle(NANO // 10)
    third = await house.admit(tokens=10)  # 0.20 of 0.30 are spent
    with pytest.raises(BudgetExhausted):
        await house.admit()
    third.settle(0)
    for _ in range(3):
        house.advance(31)
        (await house.admit(tokens=1)).settle(0)


async def test_what_could_not_be_stored_is_remembered_for_a_window() -> None:
    house = House(user="0.25/hour")
    for _ in range(3):
        (await house.admit()).settle(NANO // 10, stored=False)
    for _ in range(3):
        with pytest.raises(BudgetExhausted):
            await house.admit()
        house.advance(31)
    house.advance(3700)
    await house.call(1)
    assert house.store.reads == 4


@pytest.mark.parametrize("error", [StorageUnavailable("no"), StorageFull("full")])
async def test_what_cannot_be_read_is_not_spent(error: Exception) -> None:
    house = House(user="1/day")
    house.store.error = error
    with pytest.raises(type(error)):
        await house.admit()
    house.store.error = None
    await house.admit()


async def test_who_leaves_while_the_store_is_read_leaves_nothing_behind() -> None:
    house = House(user="0.1/day")
    house.store.gate.clear()
    calls = [asyncio.create_task(house.admit()) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    house.store.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        (await calls[1]).settle(0)
    (await house.admit()).settle(0)


async def test_idle_subjects_are_forgotten_and_open_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.costs._ACCOUNTS", 5)
    house = House(user="0.25/day")
    hold = await house.admit(user("open"), tokens=25)
    for n in range(20):
        await house.call(1, user(f"u{n}"))
    assert len(house.ledger._accounts) <= 6
    with pytest.raises(BudgetExhausted):
        await house.admit(user("open"))
    hold.settle(0)
    await house.call(30, user("u0"))
    with pytest.raises(BudgetExhausted):
        await house.admit(user("u0"))


async def test_the_dearest_target_counts() -> None:
    house = House(user="0.25/day")
    hold = await house.ledger.admit(ask(30), user(), ["echo/echo", "openai/m"], "p")
    with pytest.raises(BudgetExhausted):
        await house.admit()
    hold.settle(None)
    await house.admit()


async def test_a_restart_keeps_what_was_spent(sqlite: Database) -> None:
    owner = await make.stored_user(sqlite)
    who = dataclasses.replace(user(), user_id=owner.id)
    costs = Costs(prices={"*": Price(output=10_000)}, budgets={"user": "0.25/day", "total": "5/month"})
    ledger = Ledger(costs, Predictions(sqlite))
    for _ in range(3):
        identifier = uuid7()
        hold = await ledger.admit(ask(10), who, ["openai/m"], identifier)
        cost = ledger.cost("openai/m", Usage(1, 10))
        await make.stored_prediction(sqlite, owner.id, id=identifier, cost_nanousd=cost)
        hold.settle(cost)
    for again in (ledger, Ledger(costs, Predictions(sqlite))):
        await asyncio.sleep(0.002)  # what was stored within this millisecond is read the next time
        with pytest.raises(BudgetExhausted):
            await again.admit(ask(), who, ["openai/m"], uuid7())


@pytest.mark.parametrize(
    ("request_", "least", "most"),
    [
        (ask(text="hello"), 5, 300),
        (ask(text="日本"), 6, 300),
        (GenerationRequest((Message("user", None, tool_calls=({"id": "x" * 100},)),)), 100, 500),
        (
            GenerationRequest((Message("user", "x"),), sampling=Sampling(tools=({"type": "function", "a": "y" * 500},))),
            500,
            900,
        ),
        (
            GenerationRequest(
                (Message("user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "x" * 10**6}}]),)
            ),
            8192,
            9000,
        ),
    ],
)
def test_the_most_tokens_of_a_prompt(request_: GenerationRequest, least: int, most: int) -> None:
    assert least <= most_tokens(request_) <= most


def test_a_hold_of_nothing_settles() -> None:
    hold: Any = Hold()
    hold.settle(5)
    hold.settle(None)
