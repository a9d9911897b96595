"""The library: what uploads become, bounds, deletion out of memory too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge, TooManyRequests
from app.db.database import Database
from app.db.documents import DocumentBounds
from app.db.schema import document_pieces, documents
from tests.db.make import stored_user
from tests.memory.library import World, world


@pytest.fixture
async def at(sqlite: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with world(sqlite, tmp_path) as found:
        yield found


@pytest.fixture
async def user(sqlite: Database) -> str:
    return (await stored_user(sqlite)).id


async def rows(database: Database, table: Any) -> int:
    return await database.read(lambda connection: int(connection.execute(select(func.count()).select_from(table)).scalar_one()))


async def test_a_file_of_several_pieces_comes_back_whole(at: World, user: str) -> None:
    content = b"".join(bytes([65 + number % 26]) * 300_000 + b"\n" for number in range(3))
    added = await at.library.add_bytes(user, content, name="a.txt")
    assert added.new
    assert b"".join([part async for part in at.library.file(user, added.document)]) == content
    again = await at.library.add_bytes(user, content, name="b.txt")
    assert not again.new
    assert again.document.id == added.document.id
    assert await rows(at.database, documents) == 1


async def test_what_is_too_large_or_empty_leaves_nothing(at: World, user: str) -> None:
    with pytest.raises(PayloadTooLarge):
        await at.library.add_bytes(user, b"x" * ((1 << 20) + 1), name="a.txt")
    with pytest.raises(InvalidRequest):
        await at.library.add_bytes(user, b"", name="a.txt")
    with pytest.raises(InvalidRequest):
        await at.library.add_bytes(user, b"x", name="a.txt", collection=":facts")
    assert await rows(at.database, documents) == 0


async def test_an_upload_that_is_cancelled_while_it_is_stored_leaves_nothing(
    at: World, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, began = at.library._store.put, asyncio.Event()

    async def slow(*args: Any) -> None:
        await put(*args)
        began.set()
        await asyncio.sleep(30)

    monkeypatch.setattr(at.library._store, "put", slow)
    task = asyncio.create_task(at.library.add_bytes(user, b"text", name="a.txt"))
    await began.wait()
    assert await at.library.list(user) == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rows(at.database, documents) == 0
    assert await rows(at.database, document_pieces) == 0
    assert not at.library._coming


async def test_uploads_at_once_are_bounded(at: World, user: str, sqlite: Database) -> None:
    other = (await stored_user(sqlite)).id
    async with asyncio.timeout(5):
        opened = [at.library.upload(user) for _ in range(8)]
        for each in opened:
            await each.__aenter__()
        with pytest.raises(TooManyRequests):
            await at.library.upload(user).__aenter__()
        async with at.library.upload(other):
            pass
        for each in opened:
            await each.__aexit__(None, None, None)
    assert not at.library._coming


async def test_bounds_of_a_person(sqlite: Database, tmp_path: Path, user: str) -> None:
    async with world(sqlite, tmp_path, bounds=DocumentBounds(documents=2)) as at:
        await at.add(user, "one")
        await at.add(user, "two")
        with pytest.raises(Conflict):
            await at.add(user, "three")


async def test_deletion_reaches_the_store_and_the_answers(at: World, user: str) -> None:
    one = await at.indexed(await at.add(user, "the red lamp", collection="a"))
    two = await at.indexed(await at.add(user, "the blue lamp", collection="a"))
    await at.settled()
    await at.library.delete(user, one.id)
    assert at.changed == [user] * 3
    assert [(each.collection, each.space) for each in at.store.refreshed] == [("a", "test/hash@1/16")]
    assert [text.endswith("the blue lamp") for text in await at.texts(user, "lamp")] == [True]
    await at.library.delete(user, two.id)
    assert at.store.dropped == [(user, "a")], "a collection that is empty is dropped whole"
    assert await at.texts(user, "lamp") == []


async def test_deletion_does_not_wait_for_what_is_away(at: World, user: str) -> None:
    one = await at.indexed(await at.add(user, "the red lamp"))
    await at.indexed(await at.add(user, "the blue lamp"))
    at.embedder.away = True
    await at.library.delete(user, one.id)
    assert [text.endswith("the blue lamp") for text in await at.texts(user, "lamp")] == [True]


async def test_a_collection_is_deleted_whole(at: World, user: str, sqlite: Database) -> None:
    other = (await stored_user(sqlite)).id
    await at.indexed(await at.add(other, "theirs", collection="a"))
    for number in range(3):
        await at.indexed(await at.add(user, f"mine {number}", collection="a"))
    kept = await at.indexed(await at.add(user, "kept", collection="b"))
    assert await at.library.delete_collection(user, "a") == 3
    assert [each.id for each in await at.library.list(user)] == [kept.id]
    assert len(await at.library.list(other)) == 1
    with pytest.raises(NotFound):
        await at.library.delete_collection(user, "a")


async def test_ids_of_any_form_are_absent(at: World, user: str) -> None:
    for identifier in ("", "x", "../a", "0" * 36, "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"):
        with pytest.raises(NotFound):
            await at.library.get(user, identifier)
        with pytest.raises(NotFound):
            await at.library.delete(user, identifier)
        with pytest.raises(NotFound):
            await at.library.reindex(user, identifier)


async def test_collections_are_searched_alone_or_together(at: World, user: str) -> None:
    await at.indexed(await at.add(user, "the red lamp", collection="a"))
    await at.indexed(await at.add(user, "the blue lamp", collection="b"))
    assert len(await at.texts(user, "lamp")) == 2
    assert len(await at.texts(user, "lamp", collections=("b",))) == 1
    assert len(await at.texts(user, "lamp", collections=("b", "none"))) == 1
    assert await at.texts(user, "lamp", collections=("none",)) == []
    assert len(await at.texts(user, "lamp", k=1)) == 1
