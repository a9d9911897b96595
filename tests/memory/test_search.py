"""Hybrid search: what is found, in which order, and that nobody else's documents have a say in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from app.db.chunks import Chunks, FoundChunk, Size
from app.db.database import Database
from app.db.schema import chunks
from app.memory.search import MOST_TERMS, Found, Search, _idf, _ranked, telling
from tests.db.make import stored_user
from tests.memory.library import World, world

TEXTS = (
    "The lighthouse keeper trims the violet lamp at dusk.",
    "The harbour master writes down the height of the tide.",
    "A lamp hangs in the kitchen of the harbour inn.",
    "Lamp oil comes by boat, lamp wicks by cart, lamp glass by mail.",
    "El farero enciende la lámpara violeta al anochecer.",
)


@pytest.fixture
async def at(sqlite: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with world(sqlite, tmp_path) as found:
        yield found


@pytest.fixture
async def user(sqlite: Database) -> str:
    return (await stored_user(sqlite)).id


def shown(found: Found) -> list[tuple[str, str, float]]:
    return [(each.id, each.text, each.score) for each in found.passages]


async def test_the_rarer_word_counts_more(at: World, user: str) -> None:
    at.embedder.configured = False
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    found = await at.texts(user, "violet lamp")
    assert TEXTS[0] in found[0]
    assert len(found) == 3
    assert TEXTS[0] in (await at.texts(user, "VIOLETS lamps!"))[0], "case and plural do not count"
    assert TEXTS[4] in (await at.texts(user, "lampara"))[0], "accents do not count"
    assert await at.texts(user, "submarine") == []
    assert await at.texts(user, "?!") == []


async def test_a_rare_word_beats_a_common_one(at: World, user: str) -> None:
    at.embedder.configured = False
    common = "\n".join(f"lamp lamp lamp lamp {number}" for number in range(20))
    await at.indexed(await at.add(user, f"{common}\na violet in a field of many other flowers"))
    assert "violet" in (await at.texts(user, "violet lamp"))[0]


async def test_nobody_elses_documents_have_a_say(at: World, user: str, sqlite: Database) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    queries = ("violet lamp", "the harbour master", "lámpara", "tide lamp oil")
    before = [shown(await at.library.search(user, query)) for query in queries]
    assert all(before)
    other = (await stored_user(sqlite)).id
    many = "\n".join(f"violet lamp harbour master tide oil lampara {number}" for number in range(1000))
    await at.indexed(await at.add(other, many))
    assert [shown(await at.library.search(user, query)) for query in queries] == before


async def test_more_than_the_candidates_of_anothers_hide_nothing(at: World, user: str, sqlite: Database) -> None:
    at.embedder.configured = False
    other = (await stored_user(sqlite)).id
    await at.indexed(await at.add(other, "\n".join(f"lamp {number}" for number in range(300))))
    await at.indexed(await at.add(user, "my own lamp"))
    assert [text.endswith("my own lamp") for text in await at.texts(user, "lamp")] == [True]


async def test_a_store_that_is_away_is_told(at: World, user: str) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    at.store.away = True
    found = await at.library.search(user, "violet lamp")
    assert TEXTS[0] in found.passages[0].text
    assert "vector store" in found.notes[0]


async def test_an_embedder_that_is_slow_is_not_waited_for(at: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))

    async def slow(*args: Any, **more: Any) -> list[bytes]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(at.embedder, "embed", slow)
    found = await at.library.search(user, "violet lamp", vectors_s=0.05)
    assert TEXTS[0] in found.passages[0].text
    assert "embedder" in found.notes[0]


async def test_vectors_find_what_words_do_not(at: World, user: str) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    assert len(await at.texts(user, "submarine")) > 0, "there is always a nearest one"


async def test_a_hit_whose_row_is_gone_is_dropped(at: World, user: str, sqlite: Database) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    search = Search(Chunks(sqlite), embedder=at.embedder, vectors=at.store)
    hits = await search.by_vectors(user, "violet lamp", ["default"])
    assert len(hits.ids) == len(TEXTS)
    await sqlite.write(lambda connection: connection.execute(delete(chunks).where(chunks.c.id == hits.ids[0])))
    found, _ = await search.search(user, "violet lamp", k=9, collections=["default"])
    assert len(found.passages) == len(TEXTS) - 1


async def test_near_duplicates_show_once(at: World, user: str) -> None:
    at.embedder.configured = False
    text = "a lamp " + " ".join(f"word{number}" for number in range(40))
    await at.indexed(await at.add(user, "\n".join([text] * 5)))
    assert len(await at.texts(user, "lamp")) == 1


async def test_the_query_may_be_anything(at: World, user: str) -> None:
    await at.indexed(await at.add(user, "\n".join(TEXTS)))
    for query in ("", " ", "\0", "a" * 100_000, "lamp " * 5000, "(" * 500, "😀" * 50, '"'):
        await at.library.search(user, query)


def test_of_many_words_the_longest_are_searched() -> None:
    words = ["a" * (number % 7 + 1) + str(number) for number in range(40)]
    chosen = telling(words)
    assert len(chosen) == MOST_TERMS
    assert chosen == [word for word in words if word in set(chosen)]
    assert min(map(len, chosen)) >= max(len(word) for word in words if word not in chosen)
    assert telling(["b", "a"]) == ["b", "a"]


def test_bm25_as_computed_by_hand() -> None:
    def made(number: int, words: str) -> FoundChunk:
        return FoundChunk(number, str(number), "d", "n", "c", number, words, words, {})

    rows = [made(1, "lamp lamp oil"), made(2, "lamp tide"), made(3, "tide")]
    rarity = {"lamp": _idf(3, 2), "oil": _idf(3, 1), "absent": _idf(3, 0)}
    found = _ranked(rows, rarity, Size(3, 26))
    assert [each.number for each in found.chunks] == [1, 2, 3]
    whole = sum(rarity.values())
    assert found.coverage == pytest.approx((rarity["lamp"] + rarity["oil"]) / whole)
    assert _idf(3, 0) > _idf(3, 1) > _idf(3, 2) > _idf(3, 3) > 0
    assert _ranked([], rarity, Size(0, 0)).coverage == 0
