"""Facts on both databases: consent, bounds, owners, what is not proposed again, and generations."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from app.core.errors import Conflict
from app.core.records import FactRecord, FactState
from app.db.database import Database
from app.db.facts import MOST_KEPT, MOST_PROPOSED, PROPOSAL_DAYS, Facts, folded, hash_of
from app.db.partitions import FACTS, Partitions
from app.db.rows import values_of
from app.db.schema import facts
from app.db.users import Users
from tests.db.make import new_id, stored_user

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def fact(user_id: str, text: str, state: FactState = "proposed", at: datetime = NOW) -> FactRecord:
    return FactRecord(new_id(), user_id, text, state, at, at, hash_of(text), None if state == "kept" else "p1")


async def generation(database: Database, user_id: str) -> int:
    return await Partitions(database).generation(user_id, FACTS)


async def texts(store: Facts, user_id: str, state: FactState | None = None, now: datetime = NOW) -> list[str]:
    return [each.text for each in await store.list(user_id, now=now, state=state)]


async def test_a_proposal_is_kept_edited_and_deleted(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    proposed = await store.propose(ana, [fact(ana, "I live in Madrid."), fact(ana, "I like tea.")], now=NOW)
    assert [each.text for each in proposed.facts] == ["I live in Madrid.", "I like tea."] and proposed.dropped == 0
    assert await store.kept(ana) == [] and await generation(database, ana) == 0, "nothing is kept unasked"
    home = proposed.facts[0].id
    later = NOW + timedelta(minutes=1)
    kept = await store.edit(home, user_id=ana, now=later, keep=True)
    assert kept is not None and (kept.state, kept.updated_at, kept.created_at) == ("kept", later, NOW)
    assert await generation(database, ana) == 1
    assert await store.edit(home, user_id=ana, now=later, keep=True) == kept, "twice is once"
    assert await generation(database, ana) == 1
    assert await store.embedded(ana, "m@1/2", [(kept, b"\0" * 8)]) == 1
    assert await store.vectors(ana, "m@1/2", [home]) == {home: b"\0" * 8}
    assert await store.vectors(ana, "m@2/2", [home]) == {}
    edited = await store.edit(home, user_id=ana, now=later, text="I live in Lugo.")
    assert edited is not None and (edited.text, edited.space, edited.vector) == ("I live in Lugo.", None, None)
    assert edited.content_hash == hash_of("I live in Lugo.") != kept.content_hash
    assert await store.embedded(ana, "m@1/2", [(kept, b"\0" * 8)]) == 0, "a vector of other words is not stored"
    assert await generation(database, ana) == 3
    await store.recalled([(ana, home)], now=later)
    assert [each.recalled_at for each in await store.kept(ana)] == [later]
    gone = await store.delete(home, user_id=ana, now=later)
    assert gone is not None and gone.text == "I live in Lugo."
    assert await generation(database, ana) == 4
    assert await store.get(home, user_id=ana) is None
    assert await texts(store, ana) == ["I like tea."]
    assert await store.delete(home, user_id=ana, now=later) is None


async def test_nothing_is_proposed_twice(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)

    async def again(text: str, now: datetime = NOW) -> int:
        return len((await store.propose(ana, [fact(ana, text, at=now)], now=now)).facts)

    assert await again("I live in Madrid.") == 1
    assert await again("i live in  MADRID!") == 0
    [proposal] = await store.list(ana, now=NOW)
    await store.delete(proposal.id, user_id=ana, now=NOW)
    assert await again("I live in Madrid.") == 0, "refused"
    assert await again("I live in Madrid.", NOW + timedelta(days=PROPOSAL_DAYS)) == 1, "30 days later"
    bea = (await stored_user(database)).id
    assert len((await store.propose(bea, [fact(bea, "I live in Madrid.")], now=NOW)).facts) == 1


async def test_what_was_done_away_with_leaves_no_words(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    await store.add(fact(ana, "I am a spy.", "kept"))
    await store.propose(ana, [fact(ana, "I live in Rome.")], now=NOW)
    assert len(await store.clear(ana, now=NOW)) == 2
    rows = await database.read(lambda connection: connection.execute(select(facts)).all())
    assert [row.text for row in rows] == ["", ""]
    assert {row.state for row in rows} == {"refused"}
    assert not any(row.prediction_id or row.vector or row.recalled_at for row in rows)
    assert hash_of("I am a spy.") not in {row.content_hash for row in rows}
    assert await texts(store, ana) == [] and await store.kept(ana) == [] and await store.clear(ana, now=NOW) == []
    assert await store.expire(now=NOW + timedelta(days=PROPOSAL_DAYS)) == 2
    assert await database.read(lambda connection: connection.execute(select(facts)).all()) == []


async def test_proposals_expire_and_the_oldest_make_room(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    many = [fact(ana, f"I like number {index}.", at=NOW + timedelta(seconds=index)) for index in range(MOST_PROPOSED + 3)]
    assert (await store.propose(ana, many, now=NOW)).dropped == 3
    assert (await texts(store, ana))[-1] == "I like number 3."
    await store.add(fact(ana, "I stay.", "kept"))
    assert await texts(store, ana, now=NOW + timedelta(days=PROPOSAL_DAYS, hours=1)) == ["I stay."]
    assert await store.expire(now=NOW + timedelta(days=PROPOSAL_DAYS, hours=1)) == MOST_PROPOSED


async def test_at_most_a_thousand_are_kept(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    rows = [fact(ana, f"I know the number {index}.", "kept") for index in range(MOST_KEPT)]
    await database.write(lambda connection: connection.execute(facts.insert(), [values_of(each) for each in rows]))
    with pytest.raises(Conflict, match="1000"):
        await store.add(fact(ana, "One more.", "kept"))
    [proposal] = (await store.propose(ana, [fact(ana, "And another.")], now=NOW)).facts
    with pytest.raises(Conflict, match="1000"):
        await store.edit(proposal.id, user_id=ana, now=NOW, keep=True)
    assert (await store.add(fact(ana, "i know the number 5", "kept"))).id == rows[5].id, "known already"


async def test_adding_what_is_proposed_keeps_it(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    [proposal] = (await store.propose(ana, [fact(ana, "I like tea.")], now=NOW)).facts
    kept = await store.add(fact(ana, "I like tea", "kept"))
    assert (kept.id, kept.state, kept.prediction_id) == (proposal.id, "kept", "p1")
    assert await texts(store, ana, "kept") == ["I like tea."]


async def test_another_user_is_nobody(database: Database) -> None:
    ana, bea, store = (await stored_user(database)).id, (await stored_user(database)).id, Facts(database)
    secret = await store.add(fact(ana, "I am a spy.", "kept"))
    await store.embedded(ana, "m@1/1", [(secret, b"\0" * 4)])
    before = await generation(database, ana)
    assert await store.get(secret.id, user_id=bea) is None
    assert await store.edit(secret.id, user_id=bea, now=NOW, text="mine", keep=True) is None
    assert await store.delete(secret.id, user_id=bea, now=NOW) is None
    assert await store.clear(bea, now=NOW) == []
    assert await store.list(bea, now=NOW) == [] and await store.kept(bea) == []
    assert await store.vectors(bea, "m@1/1", [secret.id]) == {}
    assert await store.embedded(bea, "m@1/1", [(replace(secret, user_id=bea), b"\1" * 4)]) == 0
    await store.recalled([(bea, secret.id)], now=NOW)
    assert [(each.text, each.recalled_at) for each in await store.kept(ana)] == [("I am a spy.", None)]
    assert (await generation(database, ana), await generation(database, bea)) == (before, 0)


async def test_an_account_that_is_gone_takes_its_facts(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    await store.add(fact(ana, "I am a spy.", "kept"))
    await Users(database).delete(ana)
    assert await database.read(lambda connection: connection.execute(select(facts)).all()) == []
    for work in (store.add(fact(ana, "x y", "kept")), store.propose(ana, [fact(ana, "z")], now=NOW)):
        with pytest.raises(Conflict, match="deleted"):
            await work


async def test_pages(database: Database) -> None:
    ana, store = (await stored_user(database)).id, Facts(database)
    made = [await store.add(fact(ana, f"Number {index}.", "kept")) for index in range(5)]
    first = await store.list(ana, now=NOW, limit=2)
    second = await store.list(ana, now=NOW, limit=2, after=first[-1].id)
    assert [each.id for each in [*first, *second]] == [each.id for each in made[:0:-1]]


def test_folding() -> None:
    assert folded("  I live\nin Madrid! ") == folded("i LIVE in madrid") == "i live in madrid"
    assert folded("¡Soy José!") == "soy josé"
    assert folded("?!") == ""
