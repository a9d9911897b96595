"""Documents, their chunks, claims and the index of words, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.errors import Conflict, TooManyRequests
from app.core.records import ChunkRecord, DocumentRecord
from app.db.chunks import Chunks, Size
from app.db.database import Database
from app.db.documents import Collection, DocumentBounds, Documents
from app.db.indexing import REPLACED, STAGED, Indexing
from app.db.partitions import Partitions
from app.db.schema import chunks, document_pieces, documents
from app.db.users import Users
from app.db.vectors import Vectors
from app.memory.vectors.base import Partition
from app.memory.words import scope_of, words_of_text
from tests.db.make import NOW, new_id, stored_user

SPACE = "echo/echo@1/2"
OTHER = "echo/echo@2/2"
LEASE = timedelta(seconds=30)
WIDE = DocumentBounds()


def document(user_id: str, **changes: Any) -> DocumentRecord:
    identifier = new_id()
    made = DocumentRecord(
        identifier, user_id, "default", "a.txt", "", 3, identifier, "storing", NOW, NOW, claimed_until=NOW + LEASE
    )
    return replace(made, **changes)


async def stored(database: Database, user_id: str, content: bytes = b"abc", **changes: Any) -> DocumentRecord:
    record = document(user_id, bytes=len(content), **changes)
    store = Documents(database)
    assert await store.begin(record, WIDE) is None
    await store.put(record, 0, content)
    return await store.finish(record)


def piece(of: DocumentRecord, position: int, text: str, **changes: Any) -> ChunkRecord:
    words = " ".join(words_of_text(text))
    made = ChunkRecord(new_id(), of.id, of.user_id, of.collection, position, text, words, {"line": position + 1}, f"h-{text}")
    return replace(made, **changes)


async def indexed(database: Database, user_id: str, *texts: str, **changes: Any) -> DocumentRecord:
    """A document that is ready, with these chunks."""
    await stored(database, user_id, **changes)
    index = Indexing(database)
    held = await index.claim(now=NOW, until=NOW + LEASE, after="")
    assert held is not None
    scope = scope_of(user_id, held.collection)
    vectors = {"space": SPACE, "vector": b"\0\0\x80\x3f\0\0\0\0"}
    rows = [piece(held, position, text, **vectors) for position, text in enumerate(texts)]
    held = await index.stage(held, rows, scope, claimed_until=NOW + 2 * LEASE)
    assert held is not None
    characters = sum(map(len, texts))
    held = await index.exchange(
        held, len(texts), state="ready", space=SPACE, progress=1.0, claimed_until=None, characters=characters
    )
    assert held is not None
    await index.sweep(held)
    return held


async def found(database: Database, user_id: str, word: str, *collections: str, narrow: str | None = None) -> list[str]:
    scope = scope_of(user_id, narrow)
    store, names = Chunks(database), collections or ("default",)
    held = await store.holding(user_id, names, [word], scope=scope, most=100)
    return sorted(each.text for each in await store.by_number(user_id, names, held.get(word, [])))


async def count(database: Database, table: Any, *where: Any) -> int:
    query = select(func.count()).select_from(table).where(*where)
    return await database.read(lambda connection: int(connection.execute(query).scalar_one()))


async def test_a_document_is_stored_in_pieces_and_read_back(database: Database) -> None:
    user = await stored_user(database)
    store = Documents(database)
    record = document(user.id, bytes=6)
    await store.begin(record, WIDE)
    assert await store.get(record.id, user_id=user.id) is None, "not shown before it is whole"
    await store.put(record, 0, b"abc")
    await store.put(record, 1, b"def")
    whole = await store.finish(record)
    assert (whole.state, whole.claimed_until) == ("queued", None)
    assert [part async for part in store.pieces(record.id, user_id=user.id)] == [b"abc", b"def"]
    assert await store.list(user.id) == [whole]
    assert await store.collections(user.id) == [Collection("default", 1, 0, 6)]


async def test_nobody_sees_anothers(database: Database) -> None:
    owner, other = await stored_user(database), await stored_user(database)
    record = await indexed(database, owner.id, "the owner's words")
    store, search = Documents(database), Chunks(database)
    assert await store.get(record.id, user_id=other.id) is None
    assert await store.list(other.id) == []
    assert await store.collections(other.id) == []
    assert [part async for part in store.pieces(record.id, user_id=other.id)] == []
    assert await store.requeue(record.id, user_id=other.id, now=NOW) is None
    assert await store.delete(record.id, user_id=other.id) is None
    assert await store.delete_those(other.id, "default", [record.id]) == 0
    assert await search.holding(other.id, ["default"], ["word"], scope=scope_of(owner.id), most=9) == {"word": []}
    numbers = (await search.holding(owner.id, ["default"], ["word"], scope=scope_of(owner.id), most=9))["word"]
    assert len(numbers) == 1
    assert await search.by_number(other.id, ["default"], numbers) == []
    ids = [each.id for each in await search.by_number(owner.id, ["default"], numbers)]
    assert await search.by_id(other.id, ["default"], ids) == []
    assert await search.size(other.id, ["default"]) == Size(0, 0)
    assert await Indexing(database).known(other.id, SPACE, ["h-the owner's words"]) == {}
    assert await found(database, owner.id, "word") == ["the owner's words"]


async def test_twins_are_one(database: Database) -> None:
    user, other = await stored_user(database), await stored_user(database)
    first = await stored(database, user.id, sha256="s")
    store = Documents(database)
    assert await store.begin(document(user.id, sha256="s"), WIDE) == first
    assert await store.begin(document(user.id, sha256="s", collection="b"), WIDE) is None
    assert await store.begin(document(other.id, sha256="s"), WIDE) is None, "another's twin is none"


async def test_of_two_twins_at_once_one_stays(database: Database) -> None:
    user = await stored_user(database)
    store = Documents(database)
    one, two = document(user.id, sha256="s"), document(user.id, sha256="s")
    assert await store.begin(one, WIDE) is None
    assert await store.begin(two, WIDE) is None
    kept = await store.finish(one)
    assert await store.finish(two) == kept
    assert await count(database, documents) == 1


async def test_what_does_not_become_whole_is_gone(database: Database) -> None:
    user = await stored_user(database)
    store, index = Documents(database), Indexing(database)
    left, killed = document(user.id), document(user.id)
    for each in (left, killed):
        await store.begin(each, WIDE)
        await store.put(each, 0, b"abc")
    await store.abandon(left)
    assert await index.drop_abandoned(NOW) == 0
    assert await index.drop_abandoned(NOW + 2 * LEASE) == 1
    assert await count(database, documents) == 0
    assert await count(database, document_pieces) == 0
    with pytest.raises(Conflict):
        await store.put(killed, 1, b"late")
    with pytest.raises(Conflict):
        await store.finish(killed)


async def test_bounds(database: Database) -> None:
    user = await stored_user(database)
    store = Documents(database)
    await stored(database, user.id, collection="a")
    for bounds in (DocumentBounds(documents=1), DocumentBounds(bytes=5), DocumentBounds(collections=1)):
        with pytest.raises(Conflict):
            await store.begin(document(user.id, collection="b"), bounds)
    assert await store.begin(document(user.id, collection="a"), DocumentBounds(collections=1)) is None
    with pytest.raises(TooManyRequests):
        await store.begin(document(user.id, collection="b"), DocumentBounds(queued=2))
    with pytest.raises(Conflict):
        await store.begin(document(new_id()), WIDE)


async def test_claims_go_round_the_owners_and_run_out(database: Database) -> None:
    users = sorted([(await stored_user(database)).id for _ in range(3)])
    for user in users:
        for _ in range(2):
            await stored(database, user)
    index, taken, after = Indexing(database), [], ""
    for _ in range(6):
        held = await index.claim(now=NOW, until=NOW + LEASE, after=after)
        assert held is not None
        after = held.user_id
        taken.append(held)
    assert [each.user_id for each in taken] == users * 2
    assert await index.claim(now=NOW, until=NOW + LEASE, after=after) is None
    late = NOW + LEASE + timedelta(seconds=1)
    again = await index.claim(now=late, until=late + LEASE, after="")
    assert again is not None
    assert again.id == taken[0].id
    assert await index.hold(taken[0], claimed_until=late + 2 * LEASE) is None, "who was taken for dead changes nothing"
    assert await index.hold(again, claimed_until=None, state="ready") is not None


async def test_new_chunks_take_the_place_of_the_old_at_once(database: Database) -> None:
    user = await stored_user(database)
    record = await indexed(database, user.id, "old one", "old two", "old three")
    store, index = Documents(database), Indexing(database)
    await store.requeue(record.id, user_id=user.id, now=NOW)
    held = await index.claim(now=NOW, until=NOW + LEASE, after="")
    assert held is not None
    generation = await Partitions(database).generation(user.id, "default")
    partition = Partition(user.id, "default", SPACE)
    scope = scope_of(user.id, "default")
    for texts in (["never", "never", "never"], ["new one", "new two"]):  # the first try was cut off
        rows = [piece(held, at, text, space=SPACE, vector=b"\0" * 8) for at, text in enumerate(texts)]
        held = await index.stage(held, rows, scope, claimed_until=NOW + 3 * LEASE)
        assert held is not None
    assert await found(database, user.id, "old") == ["old one", "old three", "old two"]
    assert await found(database, user.id, "new") == []
    assert len(await Vectors(database).ids(partition)) == 3
    assert await index.known(user.id, SPACE, ["h-new one"]) == {"h-new one": b"\0" * 8}, "work of a cut try is not done twice"
    held = await index.exchange(held, 2, state="ready", claimed_until=None)
    assert held is not None
    assert await found(database, user.id, "old") == []
    assert await found(database, user.id, "new") == ["new one", "new two"]
    assert len(await Vectors(database).ids(partition)) == 2
    assert await Partitions(database).generation(user.id, "default") == generation + 1
    await index.sweep(held)
    assert await count(database, chunks) == 2
    assert await count(database, chunks, chunks.c.collection.in_((STAGED, REPLACED))) == 0


async def test_a_deleted_document_does_not_come_back(database: Database) -> None:
    user = await stored_user(database)
    await stored(database, user.id)
    index = Indexing(database)
    held = await index.claim(now=NOW, until=NOW + LEASE, after="")
    assert held is not None
    generation = await Partitions(database).generation(user.id, "default")
    assert await Documents(database).delete(held.id, user_id=user.id) is not None
    assert await Partitions(database).generation(user.id, "default") == generation + 1
    assert await index.stage(held, [piece(held, 0, "late")], "s", claimed_until=NOW + LEASE) is None
    assert await index.exchange(held, 1, state="ready", claimed_until=None) is None
    assert await count(database, chunks) == 0


async def test_an_account_leaves_nothing(database: Database) -> None:
    user = await stored_user(database)
    await stored_user(database, role="admin")
    await indexed(database, user.id, "to be forgotten")
    await Users(database).delete(user.id)
    for table in (documents, document_pieces, chunks):
        assert await count(database, table) == 0
    assert await found(database, user.id, "forgotten") == []


async def test_documents_of_another_space_are_embedded_again(database: Database) -> None:
    user = await stored_user(database)
    record = await indexed(database, user.id, "one", "two", "three")
    index = Indexing(database)
    assert await index.claim_to_embed(SPACE, now=NOW, until=NOW + LEASE, after="") is None
    assert await Documents(database).not_embedded(user.id, ["default"], OTHER) == 1
    held = await index.claim_to_embed(OTHER, now=NOW, until=NOW + LEASE, after="")
    assert held is not None
    assert (held.id, held.state) == (record.id, "ready")
    batch = await index.unembedded(held, OTHER, limit=2)
    assert [each.text for each in batch] == ["one", "two"]
    held = await index.embed(held, OTHER, {each.number: b"\1" * 8 for each in batch}, claimed_until=NOW + 2 * LEASE)
    assert held is not None
    vectors = Vectors(database)
    assert len(await vectors.ids(Partition(user.id, "default", OTHER))) == 2
    assert len(await vectors.ids(Partition(user.id, "default", SPACE))) == 1, "old vectors stay until they are replaced"
    assert [each.text for each in await index.unembedded(held, OTHER, limit=9)] == ["three"]


async def test_words_are_searched_within_collections(database: Database) -> None:
    user = await stored_user(database)
    await indexed(database, user.id, "red lamp", collection="a")
    await indexed(database, user.id, "blue lamp", collection="b")
    assert await found(database, user.id, "lamp", "a", "b") == ["blue lamp", "red lamp"]
    assert await found(database, user.id, "lamp", "a", narrow="a") == ["red lamp"]
    assert await found(database, user.id, "lamp", "b") == ["blue lamp"]
    assert await found(database, user.id, "lamp", "c") == []
    assert await Chunks(database).size(user.id, ["a", "b"]) == Size(2, 17)
    assert await Chunks(database).holding(user.id, [], ["lamp"], scope=scope_of(user.id), most=9) == {}


async def test_no_word_is_an_expression(database: Database) -> None:
    user = await stored_user(database)
    await indexed(database, user.id, "a secret")
    for word in ('a" OR words : "secret', "secret*", "secret OR x", "secret | x", "!x", "'", "\\", "", ":*", "a b"):
        assert await found(database, user.id, word) == [], word
