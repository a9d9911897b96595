"""The indexer: from what waits to what is found, through restarts, deletions, absent embedders and full disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.core.errors import BudgetExhausted, InvalidRequest, NotFound, StorageFull
from app.db.database import Database
from app.db.schema import chunks, documents
from app.db.users import Users
from app.memory.indexing import _BATCH
from tests.db.make import stored_user
from tests.memory.library import World, world


@pytest.fixture
async def at(sqlite: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with world(sqlite, tmp_path) as found:
        yield found


@pytest.fixture
async def user(sqlite: Database) -> str:
    await stored_user(sqlite, role="admin")
    return (await stored_user(sqlite)).id


async def number(database: Database, *where: Any) -> int:
    query = select(func.count()).select_from(chunks).where(*where)
    return await database.read(lambda connection: int(connection.execute(query).scalar_one()))


def lines(count: int, word: str = "line") -> str:
    return "\n".join(f"{word} number {each} of them" for each in range(count))


async def test_a_document_is_indexed(at: World, user: str) -> None:
    document = await at.indexed(await at.add(user, "the red lamp\nthe blue harbour"))
    assert (document.state, document.chunks, document.progress, document.format) == ("ready", 2, 1.0, "txt")
    assert document.space == "test/hash@1/16"
    await at.settled()
    assert at.changed == [user]
    assert "the red lamp" in (await at.texts(user, "red lamp"))[0]
    assert at.metrics.registry.get_sample_value("aprendiz_documents_indexed_total", {"state": "ready"}) == 1
    assert at.metrics.registry.get_sample_value("aprendiz_documents_chunks_total") == 2


async def test_large_documents_go_in_batches_and_show_their_progress(at: World, user: str) -> None:
    at.embedder.hold = asyncio.Event()
    document = await at.add(user, lines(3 * _BATCH))
    started = await at.until(lambda each: each.progress >= 0.2, document)
    assert (started.state, started.progress) == ("indexing", 0.2)
    assert await at.texts(user, "number") == [], "nothing of it is found before all is"
    at.embedder.hold.set()
    assert (await at.indexed(document)).chunks == 3 * _BATCH


async def test_without_an_embedder_words_are_enough_and_vectors_come_later(at: World, user: str) -> None:
    at.embedder.away = True
    document = await at.indexed(await at.add(user, "the red lamp"))
    assert (document.state, document.space) == ("ready", None)
    found = await at.library.search(user, "red lamp")
    assert "red lamp" in found.passages[0].text
    assert len(found.notes) == 1
    at.embedder.away = False
    document = await at.until(lambda each: each.space is not None, document)
    assert (document.state, document.progress) == ("ready", 1.0)
    assert (await at.library.search(user, "red lamp")).notes == ()


async def test_none_configured_is_no_failure(at: World, user: str) -> None:
    at.embedder.configured = False
    document = await at.indexed(await at.add(user, "the red lamp"))
    assert (document.state, document.space) == ("ready", None)
    assert len(await at.texts(user, "lamp")) == 1


async def test_an_embedder_that_leaves_half_way_costs_only_vectors(at: World, user: str) -> None:
    at.embedder.hold = asyncio.Event()
    document = await at.add(user, lines(2 * _BATCH))
    await at.until(lambda each: each.progress >= 0.2, document)
    at.embedder.away = True
    at.embedder.hold.set()
    document = await at.indexed(document)
    assert (document.state, document.chunks, document.space) == ("ready", 2 * _BATCH, None)
    at.embedder.away = False
    await at.until(lambda each: each.space is not None, document)
    assert await number(at.database, chunks.c.vector.is_(None)) == 0


async def test_another_embedder_embeds_everything_again(at: World, user: str) -> None:
    document = await at.indexed(await at.add(user, lines(_BATCH + 3)))
    at.embedder.hold = asyncio.Event()
    at.embedder.version = "2"
    at.indexer.wake()
    found = await at.library.search(user, "number 7")
    assert found.passages
    assert "until they are embedded" in found.notes[0]
    at.embedder.hold.set()
    await at.until(lambda each: each.space == "test/hash@2/16", document)
    assert await number(at.database, chunks.c.space != "test/hash@2/16") == 0
    assert (await at.library.search(user, "number 7")).notes == ()


async def test_the_same_text_is_embedded_once(at: World, user: str, sqlite: Database) -> None:
    await at.indexed(await at.add(user, "same text", collection="a"))
    document = await at.indexed(await at.add(user, "same text", collection="b"))
    assert len(at.embedder.embedded) == 1
    await at.library.reindex(user, document.id)
    await at.indexed(document)
    assert len(at.embedder.embedded) == 1
    other = await stored_user(sqlite)
    await at.indexed(await at.add(other.id, "same text"))
    assert len(at.embedder.embedded) == 2, "nobody's vectors are another's"


async def test_what_a_stopped_indexer_left_goes_on(sqlite: Database, tmp_path: Path, user: str) -> None:
    async with world(sqlite, tmp_path) as first:
        first.embedder.hold = asyncio.Event()
        document = await first.add(user, lines(2 * _BATCH))
        await first.until(lambda each: each.progress >= 0.2, document)
    async with world(sqlite, tmp_path) as second:
        document = await second.indexed(document)
        assert (document.state, document.chunks) == ("ready", 2 * _BATCH)
        assert await number(sqlite) == 2 * _BATCH


async def test_what_a_killed_one_had_embedded_is_not_embedded_again(sqlite: Database, tmp_path: Path, user: str) -> None:
    async with world(sqlite, tmp_path) as first:
        document = await first.indexed(await first.add(user, lines(2 * _BATCH)))
        assert len(first.embedder.embedded) == 2 * _BATCH
    # As a process leaves it that was killed between the last batch and the exchange, a while ago.
    past = datetime.now(UTC) - timedelta(seconds=1)

    def unfinished(connection: Any) -> None:
        connection.execute(update(chunks).values(collection=":staged"))
        connection.execute(update(documents).values(state="indexing", claimed_until=past, chunks=0))

    await sqlite.write(unfinished)
    async with world(sqlite, tmp_path) as second:
        document = await second.indexed(document)
        assert (document.state, document.chunks) == ("ready", 2 * _BATCH)
        assert second.embedder.embedded == []
        assert await number(sqlite) == 2 * _BATCH


async def test_two_indexers_share_the_work(sqlite: Database, tmp_path: Path, user: str) -> None:
    async with world(sqlite, tmp_path, start=False) as first, world(sqlite, tmp_path, start=False) as second:
        added = [await first.add(user, f"text {each}\n" + lines(_BATCH)) for each in range(8)]
        await first.indexer.start()
        await second.indexer.start()
        for each in added:
            assert (await first.indexed(each)).chunks == _BATCH + 1
        assert first.parser.parsed + second.parser.parsed == 8
        assert await number(sqlite) == 8 * (_BATCH + 1)


async def test_a_document_deleted_while_it_is_indexed_stays_away(at: World, user: str) -> None:
    at.embedder.hold = asyncio.Event()
    document = await at.add(user, lines(_BATCH))
    await at.until(lambda each: each.progress >= 0.2, document)
    await at.library.delete(user, document.id)
    at.embedder.hold.set()
    after = await at.add(user, "another")
    await at.indexed(after)
    with pytest.raises(NotFound):
        await at.library.get(user, document.id)
    assert await number(at.database) == 1


async def test_an_account_deleted_while_its_document_is_indexed_stays_away(at: World, user: str) -> None:
    at.parser.hold = asyncio.Event()
    document = await at.add(user, lines(3))
    await at.until(lambda each: each.state == "indexing", document)
    await Users(at.database).delete(user)
    at.parser.hold.set()
    other = (await stored_user(at.database)).id
    await at.indexed(await at.add(other, "another"))
    assert await number(at.database, chunks.c.user_id == user) == 0


async def test_what_cannot_be_read_fails_in_words(at: World, user: str) -> None:
    at.parser.error = InvalidRequest("The file is damaged.")
    document = await at.indexed(await at.add(user, "text"))
    assert (document.state, document.error) == ("failed", "The file is damaged.")
    at.parser.error = None
    await at.library.reindex(user, document.id)
    document = await at.indexed(document)
    assert (document.state, document.error) == ("ready", None)


async def test_a_defect_fails_one_document_and_says_nothing_of_it(at: World, user: str, caplog: Any) -> None:
    at.parser.error = RuntimeError("secret path /x")
    document = await at.indexed(await at.add(user, "text"))
    assert document.state == "failed"
    assert "secret" not in (document.error or "")
    at.parser.error = None
    assert (await at.indexed(await at.add(user, "next"))).state == "ready"


async def test_a_failing_new_index_leaves_the_old_one(at: World, user: str) -> None:
    document = await at.indexed(await at.add(user, "the red lamp"))
    at.parser.error = InvalidRequest("No.")
    await at.library.reindex(user, document.id)
    assert (await at.indexed(document)).state == "failed"
    assert len(await at.texts(user, "lamp")) == 1
    assert await number(at.database) == 1


async def test_a_full_disk_is_waited_for(at: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, tries = at.indexer._store.stage, 0

    async def full(*args: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StorageFull("The disk is full.")
        return await stage(*args, **more)

    monkeypatch.setattr(at.indexer._store, "stage", full)
    document = await at.indexed(await at.add(user, "the red lamp"))
    assert (document.state, tries) == ("ready", 3)


async def test_people_come_first_but_not_for_ever(at: World, user: str) -> None:
    at.busy = True
    assert (await at.indexed(await at.add(user, "text"))).state == "ready"


async def test_a_thousand_of_one_keep_nobody_waiting(at: World, user: str, sqlite: Database) -> None:
    at.parser.hold = asyncio.Event()
    many = [await at.add(user, f"text {each}") for each in range(30)]
    one = await at.add((await stored_user(sqlite)).id, "another's")
    at.parser.hold.set()
    await at.indexed(one)
    waiting = [await at.library.get(user, each.id) for each in many]
    assert sum(each.state == "queued" for each in waiting) >= 20


async def test_an_owner_without_a_budget_takes_no_vectors_from_others(at: World, user: str, monkeypatch: Any) -> None:
    poor_user = (await stored_user(at.database)).id
    embed = at.embedder.embed

    async def priced(texts: Any, *, kind: Any, user_id: str) -> list[bytes]:
        if user_id == poor_user:
            raise BudgetExhausted("The budget is spent.")
        return await embed(texts, kind=kind, user_id=user_id)

    monkeypatch.setattr(at.embedder, "embed", priced)
    poor = await at.indexed(await at.add(poor_user, "the red lamp"))
    mine = await at.indexed(await at.add(user, "the blue lamp"))
    assert (poor.space, mine.space) == (None, "test/hash@1/16")


async def test_an_unforeseen_failure_does_not_end_the_indexer(at: World, user: str, monkeypatch: Any) -> None:
    claim, tries = at.indexer._store.claim, 0

    async def fails(**more: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a defect")
        return await claim(**more)

    monkeypatch.setattr(at.indexer._store, "claim", fails)
    assert (await at.indexed(await at.add(user, "the red lamp"))).state == "ready"
    assert tries > 1
