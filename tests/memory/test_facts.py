"""Facts through their life, on a real database, with a small embedder and a store that follows the database."""

from __future__ import annotations

import asyncio
import math
import zlib
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core.errors import BudgetExhausted, NotFound, Unavailable
from app.core.ids import uuid7
from app.core.records import UserRecord
from app.db.database import Database
from app.db.facts import Facts
from app.db.partitions import FACTS
from app.db.users import Users
from app.db.vectors import Vectors
from app.memory.embedder import Kind
from app.memory.facts import FactMemory
from app.memory.vectors.base import Hit, Partition

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOPICS: Mapping[str, Sequence[str]] = {
    "home": ("live", "madrid", "city", "weather", "vivo", "town"),
    "food": ("eat", "allergic", "peanuts", "dinner", "cook", "cacahuetes", "recipe"),
    "pets": ("dog", "rex", "vet", "perro", "animal"),
    "work": ("work", "nurse", "hospital", "shift", "career"),
}


class Topics:
    """An embedder that knows four topics, and finds everything rather similar, as real ones do."""

    def __init__(self, space: str | None = "topics@1/69") -> None:
        self.named = space
        self.away = False
        self.slow = False
        self.asked: list[str] = []

    async def space(self) -> str | None:
        if self.away:
            raise Unavailable("The embedder is away.", retry_after=1)
        return self.named

    async def embed(self, texts: Sequence[str], *, kind: Kind, user_id: str) -> list[bytes]:
        if self.away:
            raise Unavailable("The embedder is away.", retry_after=1)
        if self.slow:
            await asyncio.sleep(60)
        self.asked += [text for text in texts if kind == "passage"]
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> bytes:
        words = "".join(char if char.isalnum() else " " for char in text.casefold()).split()
        found = [1.0, *(float(sum(word in known for word in words)) for known in TOPICS.values()), *[0.0] * 64]
        if not any(found[1:]):
            found[5 + zlib.crc32(text.encode()) % 64] = 2.0  # about something of its own
        length = math.sqrt(sum(each * each for each in found))
        return array("f", (each / length for each in found)).tobytes()


class Following:
    """A vector store by the letter of its contract: what it finds is what the database has."""

    name = "following"

    def __init__(self, source: Vectors) -> None:
        self.source = source
        self.seen: dict[Partition, dict[str, str]] = {}
        self.searched = 0
        self.away = False

    async def open(self) -> None:
        """Nothing to open."""

    async def search(self, partition: Partition, vector: bytes, k: int) -> list[Hit]:
        self.searched += 1
        await self.refresh(partition)
        query = array("f", vector)
        rows = await self.source.vectors(partition, list(self.seen[partition]))
        hits = [Hit(key, sum(a * b for a, b in zip(query, array("f", each), strict=True))) for key, each in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    async def refresh(self, partition: Partition) -> None:
        if self.away:
            raise Unavailable("The store is away.", retry_after=1)
        self.seen[partition] = dict(await self.source.ids(partition))

    async def forget(self, user_id: str, collection: str | None = None) -> None:
        self.seen.clear()

    def status(self) -> Mapping[str, Any]:
        return {}

    async def aclose(self) -> None:
        """Nothing to close."""


class World:
    """A memory of facts with everything around it."""

    def __init__(self, database: Database) -> None:
        self.store = Facts(database)
        self.embedder = Topics()
        self.vectors = Following(Vectors(database))
        self.forgotten: list[str] = []
        self.now = NOW
        self.memory = FactMemory(
            self.store, self.vectors, self.embedder, forget_answers=self.forget, now=lambda: self.now, retry_s=0.05
        )

    async def forget(self, user_id: str) -> None:
        self.forgotten.append(user_id)

    async def texts(self, query: str, user: str = "ana", limit: int = 8) -> list[str]:
        return [each.text for each in await self.memory.recall(user, query, limit=limit)]

    async def embedded(self, user: str = "ana") -> None:
        """Waits until everything kept has a vector."""
        for _ in range(200):
            if all(each.space == self.embedder.named for each in await self.store.kept(user)):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the facts were not embedded")


@pytest.fixture
async def world(sqlite: Database) -> AsyncIterator[World]:
    for name in ("ana", "bea"):
        await Users(sqlite).create(UserRecord(name, name, "user", "hash", NOW))
    world = World(sqlite)
    await world.memory.start()
    yield world
    await world.memory.aclose()
    await world.memory.aclose()


async def test_from_a_message_to_a_recalled_fact(world: World) -> None:
    prediction = uuid7()
    learned = await world.memory.learn("ana", "I live in Madrid and I'm allergic to peanuts. What's for dinner?", prediction)
    assert [(each.text, each.state, each.prediction_id) for each in learned] == [
        ("I live in Madrid.", "proposed", prediction),
        ("I'm allergic to peanuts.", "proposed", prediction),
    ]
    assert await world.texts("Where do I live, and what can I eat?") == [], "not without consent"
    assert await world.memory.learn("ana", "I live in Madrid", uuid7()) == []
    for each in learned:
        await world.memory.edit("ana", each.id, keep=True)
    await world.embedded()
    assert await world.texts("a recipe for dinner") == ["I'm allergic to peanuts."]
    assert await world.texts("how is the weather in my town") == ["I live in Madrid."]
    assert await world.texts("prove that there are many primes") == [], "nothing that is not asked for"
    assert await world.texts("a recipe for dinner", user="bea") == []
    assert await world.texts("a recipe for dinner", limit=0) == []


async def test_what_one_is_called_is_always_recalled(world: World) -> None:
    for text in ("I live in Madrid.", "Me llamo Ana.", "Always answer in Spanish."):
        await world.memory.add("ana", text)
    await world.embedded()
    assert await world.texts("prove that there are many primes") == ["Always answer in Spanish.", "Me llamo Ana."]
    assert set(await world.texts("which city is mine")) == {"Always answer in Spanish.", "Me llamo Ana.", "I live in Madrid."}
    for index in range(10):
        await world.memory.add("ana", f"Never use the word number{index}.")
    assert len(await world.texts("prove that there are many primes")) == 4, "they leave room for what is relevant"
    assert "I live in Madrid." in await world.texts("which city is mine")


async def test_the_newer_of_two_comes_first(world: World) -> None:
    await world.memory.add("ana", "I work at a hospital.")
    world.now = NOW + timedelta(days=120)
    await world.memory.add("ana", "I work as a nurse in a hospital.")
    await world.embedded()
    query = "a career question about work in a hospital"
    assert (await world.texts(query))[0] == "I work as a nurse in a hospital."
    assert len(await world.texts(query)) == 2, "age orders, and hides nothing"


async def test_without_an_embedder_words_decide(world: World) -> None:
    world.embedder.away = True
    for text in ("I'm allergic to peanuts.", "Mi perro se llama Toby.", "I like tea."):
        await world.memory.add("ana", text)
    assert await world.texts("Is there anything with peanuts?") == ["I'm allergic to peanuts."]
    assert await world.texts("¿Qué come un perro?") == ["Mi perro se llama Toby."]
    assert await world.texts("What do people like to do?") == [], "a word that half of all facts have tells nothing"
    world.embedder.away = False
    assert await world.texts("Which recipe?") == [], "not yet embedded; noticed now"
    await world.embedded()
    assert await world.texts("Which recipe for dinner?") == ["I'm allergic to peanuts."]


async def test_a_slow_embedder_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.memory.facts._RECALL_S", 0.05)
    await world.memory.add("ana", "I'm allergic to peanuts.")
    await world.embedded()
    world.embedder.slow = True
    assert await world.texts("a cake with peanuts") == ["I'm allergic to peanuts."]


async def test_none_configured(sqlite: Database) -> None:
    await Users(sqlite).create(UserRecord("ana", "ana", "user", "hash", NOW))
    world = World(sqlite)
    world.embedder.named = None
    await world.memory.add("ana", "I'm allergic to peanuts.")
    assert await world.texts("a cake with peanuts") == ["I'm allergic to peanuts."]
    await world.memory.aclose()


async def test_many_are_searched_in_the_store(world: World) -> None:
    for index in range(70):
        await world.memory.add("ana", f"I collect stamp number {index}.")
    await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    assert await world.texts("which animal needs a vet") == ["My dog is called Rex."]
    assert world.vectors.searched == 1
    world.vectors.away = True
    assert await world.texts("what does Rex need") == ["My dog is called Rex."], "by words"


async def test_vectors_of_another_embedder_are_made_anew(world: World) -> None:
    await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    world.embedder.named = "topics@2/69"
    await world.texts("which animal needs a vet")
    await world.embedded()
    assert await world.texts("which animal needs a vet") == ["My dog is called Rex."]


async def test_what_is_deleted_is_gone_everywhere(world: World) -> None:
    kept = await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    partition = Partition("ana", FACTS, str(world.embedder.named))
    await world.vectors.refresh(partition)
    assert list(world.vectors.seen[partition]) == [kept.id]
    await world.memory.delete("ana", kept.id)
    assert world.vectors.seen[partition] == {} and world.forgotten == ["ana"]
    assert await world.texts("which animal needs a vet") == []
    again = await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    world.vectors.away = True
    await world.memory.delete("ana", again.id)
    assert await world.texts("which animal needs a vet, Rex?") == [], "gone though the store cannot be told yet"
    assert world.forgotten == ["ana", "ana"]


async def test_an_edit_forgets_the_old_words(world: World) -> None:
    kept = await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    changed = await world.memory.edit("ana", kept.id, text="I live in Madrid.")
    assert changed.text == "I live in Madrid." and world.forgotten == ["ana"]
    await world.embedded()
    assert await world.texts("which animal needs a vet") == []
    assert await world.texts("which city is it") == ["I live in Madrid."]
    [proposal] = await world.memory.learn("ana", "I like tea.", None)
    await world.memory.edit("ana", proposal.id, text="I like coffee.")
    assert world.forgotten == ["ana"], "a proposal was in no answer"


async def test_clearing_takes_all_of_one_user(world: World) -> None:
    await world.memory.add("ana", "My dog is called Rex.")
    await world.memory.learn("ana", "I live in Madrid.", None)
    other = await world.memory.add("bea", "My dog is called Max.")
    assert await world.memory.clear("ana") == 2
    assert await world.memory.list("ana") == []
    assert [each.id for each in await world.memory.list("bea")] == [other.id]
    assert await world.memory.learn("ana", "I live in Madrid.", None) == [], "not asked again so soon"


async def test_when_it_was_recalled_is_noted(world: World) -> None:
    kept = await world.memory.add("ana", "My dog is called Rex.")
    await world.embedded()
    await world.texts("Rex")
    await world.memory.aclose()
    found = await world.store.get(kept.id, user_id="ana")
    assert found is not None and found.recalled_at == NOW


@pytest.mark.parametrize("fact_id", ["", "x", "a\0b", "1" * 5000, "00000000-0000-4000-8000-000000000000"])
async def test_what_is_no_id_is_not_looked_up(world: World, fact_id: str) -> None:
    for work in (world.memory.delete("ana", fact_id), world.memory.edit("ana", fact_id, text="x")):
        with pytest.raises(NotFound) as caught:
            await work
        assert caught.value.detail == "There is no such fact."


async def test_anothers_and_an_absent_one_are_the_same(world: World) -> None:
    kept = await world.memory.add("ana", "My dog is called Rex.")
    for asked in (kept.id, uuid7()):
        for work in (world.memory.delete("bea", asked), world.memory.edit("bea", asked, text="mine", keep=True)):
            with pytest.raises(NotFound) as caught:
                await work
            assert caught.value.detail == "There is no such fact."
    assert [each.text for each in await world.memory.list("ana")] == ["My dog is called Rex."]
    assert world.forgotten == []


async def test_learning_never_raises(world: World) -> None:
    assert await world.memory.learn("nobody", "I live in Madrid.", None) == []
    assert await world.memory.learn("ana", "\ud800 my name is \x00", None) == []


async def test_one_who_has_no_budget_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = world.embedder.embed

    async def priced(texts: Sequence[str], *, kind: Kind, user_id: str) -> list[bytes]:
        if user_id == "bea":
            raise BudgetExhausted("The budget is spent.")
        return await embed(texts, kind=kind, user_id=user_id)

    monkeypatch.setattr(world.embedder, "embed", priced)
    kept = await world.memory.add("ana", "I live in Lisbon.")
    await world.embedded()
    world.vectors.away = True
    await world.memory.add("ana", "I like tea.")
    await world.memory.add("bea", "I like coffee.")
    await world.memory.delete("ana", kept.id)
    await world.embedded()
    seen = world.vectors.seen
    world.vectors.away = False
    for _ in range(200):
        if any(partition.user_id == "ana" and kept.id not in rows for partition, rows in seen.items()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("what was deleted stays in the store")
