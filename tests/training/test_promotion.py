"""Promotion on the real database: no door for what failed, canaries judged by votes, rollback, restarts and faults."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from app.core.errors import AprendizError, Conflict, Forbidden, InvalidRequest, NotFound, NotPromotable
from app.core.ids import uuid7
from app.core.metrics import Metrics
from app.core.records import CanaryRecord, FeedbackRecord, RunRecord, UserRecord
from app.core.settings import Model
from app.core.types import EngineState, Principal
from app.db.audit import Audit
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.runs import Canaries, Runs
from app.db.users import Users
from app.db.versions import Aliases, Versions
from app.db.votes import Votes
from app.models.model_manager import ModelManager, ModelStores
from app.training.canary import LiveStores
from app.training.promotion import Promotion
from app.training.rules import Rules
from tests.models.doubles import Registry, ScriptedProvider, ask, spec, until, user

ROOT = user("root", "admin")
PASS = {"verdict": "pass", "checks": [{"name": "win_rate", "passed": True}]}
FAIL = {"verdict": "fail", "checks": [{"name": "win_rate", "passed": True}, {"name": "forgetting", "passed": False}]}
BASE = spec("a")


class House:
    """The model manager and promotion on one database; `restart` is what a restart of the service is."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs, self.canaries, self.audit = Runs(database), Canaries(database), Audit(database)
        self.feedback = Feedback(database)
        self.provider = ScriptedProvider()
        self.people = 0

    async def start(self) -> None:
        stores = ModelStores(Predictions(self.database), Versions(self.database), Aliases(self.database), self.audit)
        rules = Rules(self.runs)
        settings = Model(provider="scripted", model="a", preload=False, system_prompt="")
        self.metrics = Metrics()
        self.models = ModelManager(
            settings, providers=Registry(self.provider), stores=stores, metrics=self.metrics, guard=rules.check
        )
        live = LiveStores(self.canaries, Votes(self.database))
        self.promotion = Promotion(self.models, rules=rules, stores=live, audit=self.audit, metrics=self.metrics)
        await self.models.start()
        await self.promotion.start()

    async def aclose(self) -> None:
        await self.promotion.aclose()
        await self.models.aclose()

    async def restart(self) -> None:
        await self.aclose()
        await self.start()

    async def run(self, name: str, gate: dict[str, Any] | None, **more: Any) -> str:
        """A run that made the adapter ``name``, judged by ``gate``; its version has been loaded here."""
        version = f"a-{name}"
        now = datetime.now(UTC)
        record = RunRecord(
            id=name,
            created_at=now,
            created_by=None,
            state="succeeded",
            phase="done",
            method="dpo",
            promote="never",
            config={},
            version=None if gate is None else version,
            gate=gate,
            **more,
        )
        await self.runs.add(record)
        async with self.models.trial(spec("a", name)):
            pass
        return version

    async def person(self) -> Principal:
        self.people += 1
        name = f"person-{self.people}"
        await Users(self.database).create(UserRecord(name, name, "user", "hash", datetime.now(UTC)))
        return user(name)

    async def answer(self, who: Principal) -> Any:
        return (await self.models.answer(ask("one"), who)).prediction

    async def vote(self, who: Principal, good: Callable[[str], bool], key: str | None = None, **said: Any) -> str:
        """Lets somebody ask and rate the answer as ``good`` of its version says; returns that version."""
        prediction = await self.answer(dataclasses.replace(who, key_id=key))
        words = said or {"rating": "up" if good(prediction.version) else "down"}
        record = FeedbackRecord(
            id=uuid7(),
            prediction_id=prediction.id,
            rater=who.user_id,
            created_at=datetime.now(UTC),
            user_id=who.user_id,
            **words,
        )
        await self.feedback.store(record)
        return str(prediction.version)

    async def votes(self, count: int, good: Callable[[str], bool]) -> None:
        for _ in range(count):
            await self.vote(await self.person(), good)

    async def current(self) -> str:
        return (await self.answer(await self.person())).version  # type: ignore[no-any-return]

    async def actions(self) -> list[str]:
        return [line.action for line in reversed(await self.audit.list(limit=200))]

    async def gate_of(self, run_id: str) -> dict[str, Any]:
        run = await self.runs.get(run_id)
        assert run is not None
        return dict(run.gate or {})


@pytest.fixture
async def house(sqlite: Database) -> AsyncIterator[House]:
    await Users(sqlite).create(UserRecord("root", "root", "admin", "hash", datetime.now(UTC)))
    made = House(sqlite)
    await made.start()
    assert await made.current() == "a-base"
    yield made
    await made.aclose()
    assert made.provider.alive == []


async def refused(attempt: Awaitable[object]) -> str:
    with pytest.raises(NotPromotable) as error:
        await attempt
    return error.value.detail


@pytest.mark.parametrize("why", ["failed", "not judged", "retired", "another version", "no run"])
async def test_what_failed_comes_through_no_door(house: House, why: str) -> None:
    now = datetime.now(UTC)
    more = {"retired_at": now, "retired_reason": "erasure"} if why == "retired" else {}
    gate = {"failed": FAIL, "not judged": None, "retired": PASS, "another version": PASS, "no run": PASS}[why]
    bad = await house.run("bad", gate, **more)
    if why == "another version":
        await house.runs.update("bad", version="f" * 16)
    if why == "no run":
        async with house.models.trial(spec("a", "unknown")):
            bad = "a-unknown"
    adapter = bad.removeprefix("a-")
    models, promotion = house.models, house.promotion
    doors = [
        promotion.promote(bad, actor=ROOT),
        promotion.promote(bad, actor=None),
        promotion.promote(bad, actor=ROOT, share=0.5),
        promotion.switch(spec("a", adapter), actor=ROOT),
        models.promote(bad, actor=ROOT),
        models.promote_spec(spec("a", adapter), version=bad, actor=ROOT),
        models.switch(spec("a", adapter), actor=ROOT),
        models.switch(spec("a", adapter), actor=ROOT, alias="other"),
    ]
    for door in doors:
        await refused(door)
    assert promotion.canary() is None
    assert await house.current() == "a-base"
    # It served before it was found bad: no way back to it, and none by a restart.
    good = await house.run("good", PASS)
    record = await Aliases(house.database).get("default")
    assert record is not None
    await Aliases(house.database).move(dataclasses.replace(record, adapter=adapter, version=bad))
    await house.restart()
    assert await house.current() == "a-base"
    await promotion_of(house).promote(good, actor=ROOT)
    await Aliases(house.database).move(dataclasses.replace(record, adapter=adapter, version=bad))
    record = await Aliases(house.database).get("default")
    assert record is not None
    await Aliases(house.database).move(dataclasses.replace(record, adapter="good", version=good))
    await house.restart()
    assert await house.current() == good
    assert (await house.promotion.rollback(actor=ROOT)).version != bad
    assert await house.current() != bad


def promotion_of(house: House) -> Promotion:
    return house.promotion


async def test_base_versions_are_free_and_unknown_ones_are_not_found(house: House) -> None:
    await house.promotion.switch(spec("b"), actor=ROOT)
    await house.promotion.promote("a-base", actor=ROOT)
    assert await house.current() == "a-base"
    with pytest.raises(NotFound):
        await house.promotion.promote("0" * 16, actor=ROOT)


async def test_an_override_is_an_admins_with_a_reason_and_is_written_down(house: House) -> None:
    bad = await house.run("bad", FAIL)
    assert "forgetting" in await refused(house.promotion.promote(bad, actor=ROOT))
    for actor, reason, error in (
        (user("ana"), "I want it", Forbidden),
        (None, "I want it", Forbidden),
        (ROOT, " ", InvalidRequest),
        (ROOT, "x" * 501, InvalidRequest),
    ):
        with pytest.raises(error):
            await house.promotion.promote(bad, actor=actor, override=reason)
    await house.promotion.promote(bad, actor=ROOT, override="The guard's prompts are not ours.")
    assert await house.current() == bad
    line = next(each for each in await house.audit.list() if each.action == "model.override")
    assert (line.actor, line.details["failed"], line.details["reason"]) == (
        "root",
        ["forgetting"],
        "The guard's prompts are not ours.",
    )
    assert (await house.gate_of("bad"))["override"]["by"] == "root"
    await house.restart()
    assert await house.current() == bad, "the override stands"
    await house.runs.update("bad", retired_at=datetime.now(UTC), retired_reason="erasure")
    await refused(house.promotion.promote(bad, actor=ROOT, override="Still."))
    await house.promotion.tick()
    assert await house.current() == "a-base", "what is retired goes by itself"


async def test_rollback_goes_back_step_by_step_and_passes_over_what_may_not_serve(house: House) -> None:
    versions = [await house.run(f"r{n}", PASS) for n in range(3)]
    for version in versions:
        await house.promotion.promote(version, actor=ROOT)
    await house.runs.update("r1", retired_at=datetime.now(UTC), retired_reason="erasure")
    assert (await house.promotion.rollback(actor=ROOT)).version == versions[0]
    assert (await house.promotion.rollback(actor=ROOT)).version == "a-base"
    with pytest.raises(Conflict):
        await house.promotion.rollback(actor=ROOT)
    assert await house.current() == "a-base"
    assert (await house.gate_of("r2"))["rolled_back"]["by"] == "root"
    assert "run.rolled_back" in await house.actions()
    await house.promotion.promote(versions[2], actor=ROOT)
    assert await house.current() == versions[2], "a rollback by an admin is no verdict"


async def test_a_canary_that_people_dislike_is_rolled_back_by_itself(house: House) -> None:
    new = await house.run("new", PASS)
    made = await house.promotion.promote(new, actor=ROOT, share=0.5)
    assert isinstance(made, CanaryRecord)
    assert (made.version, made.control_version, made.state, made.run_id) == (new, "a-base", "running", "new")
    with pytest.raises(Conflict):
        await house.promotion.promote(new, actor=ROOT, share=0.5)
    for _ in range(30):
        await house.votes(4, lambda version: version != new)
        await house.promotion.tick()
        if house.promotion.canary() is None:
            break
    ended = await house.promotion.last_canary()
    assert ended is not None
    assert (ended.state, ended.counts["new"]["good"], ended.counts["control"]["bad"]) == ("rolled_back", 0, 0)
    assert ended.counts["harm"] >= 20
    assert {await house.current() for _ in range(6)} == {"a-base"}
    assert (await house.gate_of("new"))["harm"]
    assert "liked it less" in await refused(house.promotion.promote(new, actor=ROOT))
    assert house.metrics.registry.get_sample_value("aprendiz_promotions_total", {"outcome": "rolled_back_by_itself"}) == 1
    assert {"canary.start", "canary.end", "run.harm"} <= set(await house.actions())
    await house.promotion.promote(new, actor=ROOT, override="The votes were a prank.")
    assert await house.current() == new


async def test_a_canary_that_people_like_is_promoted_by_itself(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    for _ in range(30):
        await house.votes(4, lambda version: version == new)
        await house.promotion.tick()
        if house.promotion.canary() is None:
            break
    assert {await house.current() for _ in range(4)} == {new}
    ended = await house.promotion.last_canary()
    assert ended is not None
    assert ended.state == "promoted"
    assert (await house.promotion.rollback(actor=ROOT)).version == "a-base"


async def test_one_person_with_many_sessions_decides_nothing(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    mallory = await house.person()
    for n in range(60):
        await house.vote(mallory, lambda version: version != new, key=f"key {n}")
    await house.promotion.tick()
    running = house.promotion.canary()
    assert running is not None
    assert running.counts["new"]["bad"] == 5


async def test_what_counts_as_a_vote(house: House) -> None:
    new = await house.run("new", PASS)
    early = await house.person()
    before = [await house.answer(early)]
    await house.promotion.promote(new, actor=ROOT)
    before.append(await house.answer(early))
    assert before[1].version == new
    await house.promotion.rollback(actor=ROOT)
    await asyncio.sleep(0.002)  # ids tell milliseconds apart
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    for answer in before:  # of before the canary, though said now: does not count
        record = FeedbackRecord(uuid7(), answer.id, early.user_id, datetime.now(UTC), early.user_id, rating="up")
        await house.feedback.store(record)
    someone = await house.person()
    await house.vote(someone, lambda _: True)
    await house.vote(someone, lambda _: False)  # the same session again: the first word counts
    await house.vote(await house.person(), lambda _: True, correction="Better so.")
    await house.vote(await house.person(), lambda _: True, comment="Hm.")
    await house.promotion.tick()
    running = house.promotion.canary()
    assert running is not None
    both = [running.counts[side] for side in ("control", "new")]
    assert (sum(each["good"] for each in both), sum(each["bad"] for each in both)) == (1, 1)


async def test_a_promotion_is_watched_and_taken_back(house: House) -> None:
    await house.votes(25, lambda _: True)
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT)
    await house.votes(8, lambda _: False)
    await house.restart()
    for _ in range(6):
        await house.votes(4, lambda _: False)
        await house.promotion.tick()
    assert await house.current() == "a-base"
    assert (await house.gate_of("new"))["harm"]
    assert (await house.gate_of("new"))["rolled_back"]
    watched = (await house.canaries.list())[0]
    assert (watched.share, watched.state) == (1.0, "rolled_back")
    assert await house.promotion.last_canary() is None, "a watched promotion is no canary"


async def test_a_canary_lives_through_a_restart_with_the_same_sessions(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    people = [await house.person() for _ in range(12)]
    sides = [(await house.answer(each)).version for each in people]
    assert set(sides) == {"a-base", new}
    await house.votes(6, lambda version: version != new)
    await house.restart()
    assert [(await house.answer(each)).version for each in people] == sides
    await house.promotion.tick()
    running = house.promotion.canary()
    assert running is not None
    assert sum(running.counts["new"].values()) + sum(running.counts["control"].values()) == 6
    stopped = await house.promotion.stop_canary(actor=ROOT)
    assert (stopped.state, stopped.reason) == ("stopped", "stopped by an admin")
    with pytest.raises(Conflict):
        await house.promotion.stop_canary(actor=ROOT)
    assert {(await house.answer(each)).version for each in people} == {"a-base"}
    await house.restart()
    assert house.promotion.canary() is None


async def test_killed_between_the_alias_and_the_row_of_the_canary(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    await house.models.promote(new, actor=None)
    await house.restart()
    assert await house.current() == new
    last = await house.promotion.last_canary()
    assert last is not None
    assert last.state == "promoted"
    # And a canary whose other side is another one after the restart is over.
    other = await house.run("other", PASS)
    await house.promotion.promote(other, actor=ROOT, share=0.5)
    await house.models.promote("a-base", actor=None)
    await house.restart()
    assert house.promotion.canary() is None
    assert await house.current() == "a-base"


async def test_a_canary_whose_run_was_retired_meanwhile_ends(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    await house.runs.update("new", retired_at=datetime.now(UTC), retired_reason="erasure")
    await house.promotion.tick()
    assert house.promotion.canary() is None
    assert {await house.current() for _ in range(4)} == {"a-base"}


async def test_a_canary_whose_engine_fails_ends_and_nobody_is_harmed(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.5)
    house.provider.errors["a"] = AprendizError("It is broken.")
    next(model for model in house.provider.alive if model.version.id == new).tell(EngineState.FAILED)
    versions = {await house.current() for _ in range(24)}
    assert versions == {"a-base"}
    await house.promotion.tick()
    ended = await house.promotion.last_canary()
    assert ended is not None
    assert ended.state == "rolled_back"
    assert ended.counts["engine"]["failures"] >= 5
    assert (await house.gate_of("new"))["rolled_back"]
    house.provider.errors.clear()


async def test_rollback_ends_a_canary_first(house: House) -> None:
    first, second = await house.run("r1", PASS), await house.run("r2", PASS)
    await house.promotion.promote(first, actor=ROOT, share=0.3)
    assert (await house.promotion.rollback(actor=ROOT)).version == "a-base", "nothing before: its end is the rollback"
    await house.promotion.promote(first, actor=ROOT)
    await house.promotion.promote(second, actor=ROOT, share=0.3)
    assert (await house.promotion.rollback(actor=ROOT)).version == "a-base"
    assert house.promotion.canary() is None
    assert (await house.gate_of("r2"))["rolled_back"]


async def test_another_order_ends_a_canary(house: House) -> None:
    new = await house.run("new", PASS)
    await house.promotion.promote(new, actor=ROOT, share=0.3)
    await house.promotion.switch(spec("b"), actor=ROOT)
    last = await house.promotion.last_canary()
    assert last is not None
    assert (last.state, last.reason) == ("stopped", "default was moved")
    assert await house.current() == "b-base"
    await house.promotion.promote(new, actor=ROOT, share=0.3)
    await house.promotion.promote(new, actor=ROOT)
    last = await house.promotion.last_canary()
    assert last is not None
    assert last.state == "promoted"


async def test_a_promotion_while_a_switch_runs_is_refused(house: House) -> None:
    new = await house.run("new", PASS)
    house.provider.gate.clear()
    switching = asyncio.create_task(house.models.switch(spec("b"), actor=ROOT))
    await until(lambda: any(each.model == "scripted/b" for each in house.models.status().engines))
    with pytest.raises(Conflict):
        await house.promotion.promote(new, actor=ROOT)
    house.provider.gate.set()
    await switching
    assert await house.current() == "b-base"


async def test_a_caller_who_leaves_does_not_stop_a_promotion_half_way(house: House) -> None:
    new = await house.run("new", PASS)
    house.provider.gate.clear()
    leaving = asyncio.create_task(house.promotion.promote(new, actor=ROOT, share=0.4))
    await until(lambda: house.provider.tries > 2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    house.provider.gate.set()
    await until(lambda: house.promotion.canary() is not None)
    assert (await house.canaries.list())[0].state == "running"


@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=pytest.mark.slow)])
async def test_promotions_and_rollbacks_under_20_streams(house: House, rounds: int) -> None:
    versions = [await house.run(f"r{n}", PASS) for n in range(2)]
    people = [await house.person() for _ in range(20)]
    done, answered = False, 0

    async def stream(who: Principal) -> None:
        nonlocal answered
        while not done:
            completed = await house.models.answer(ask("one two three four"), who)
            assert completed.answer.text == "a:one a:two a:three a:four "
            assert completed.prediction.version in ("a-base", *versions)
            answered += 1

    streams = [asyncio.create_task(stream(each)) for each in people]
    for n in range(rounds):
        await house.promotion.promote(versions[n % 2], actor=ROOT)
        await house.promotion.rollback(actor=ROOT)
    done = True
    await asyncio.gather(*streams)
    assert answered >= 20
    assert await house.current() == "a-base"
    await until(lambda: len(house.provider.alive) == 1)
