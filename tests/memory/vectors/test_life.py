"""What the stores survive: kill -9, damaged files, a full disk; and what deletion leaves on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.errors import ShuttingDown
from app.memory.vectors.base import Partition, VectorStore
from tests.memory.vectors.conftest import Site
from tests.memory.vectors.world import World, ids, partition, rand, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
EMBEDDED = pytest.mark.parametrize("site", ["faiss", "chroma"], indirect=True, scope="module")
_SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("chroma", "chroma server")]
CHILDREN = pytest.mark.parametrize("site", ["faiss", *_SLOW], indirect=True, scope="module")
CHROMA = pytest.mark.parametrize("site", ["chroma"], indirect=True, scope="module")
FAISS = pytest.mark.parametrize("site", ["faiss"], indirect=True, scope="module")


@contextlib.asynccontextmanager
async def opened(site: Site, world: World) -> AsyncIterator[VectorStore]:
    """A store of one's own at the same place."""
    store = site.store(world)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def kill(store: VectorStore) -> None:
    """kill -9 of its child."""
    os.kill(store.status()["pid"], signal.SIGKILL)


def holding(folder: Path, needle: bytes) -> list[str]:
    """The files that hold these bytes."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def files(site: Site, suffix: str) -> list[Path]:
    """The store's files of a kind."""
    return sorted(site.folder.rglob(f"*{suffix}"))


async def filled(world: World, count: int = 50) -> Partition:
    """A partition of a new owner, with vectors of its own."""
    here = partition(await world.owner())
    await world.put(here, [(name(here, number), own(here, number)) for number in range(count)])
    return here


def own(here: Partition, number: int) -> bytes:
    """One of its vectors."""
    return rand(int(here.user_id.rpartition("-")[2]) * 10_000 + number)


def name(here: Partition, number: int) -> str:
    """The id of one of its rows."""
    return f"{here.user_id}.{number:03}"


async def saved(site: Site, here: Partition) -> None:
    """Waits until its vectors are on disk."""
    await until(lambda: bool(holding(site.folder, own(here, 9))))


@EMBEDDED
async def test_nothing_deleted_is_left_on_disk(site: Site, world: World, store: VectorStore) -> None:
    here = await filled(world)
    needle = own(here, 7)
    await store.search(here, own(here, 1), 3)
    await until(lambda: bool(holding(site.folder, needle)))
    await world.remove(here, [name(here, 7)])
    await store.refresh(here)
    assert holding(site.folder, needle) == []
    assert len(await store.search(here, own(here, 7), 100)) == 49
    await store.forget(here.user_id)
    assert holding(site.folder, own(here, 8)) == []


@FAISS
async def test_the_other_spaces_of_a_collection_go_with_a_refresh(site: Site, world: World, store: VectorStore) -> None:
    here = await filled(world)
    await store.search(here, own(here, 1), 3)
    await until(lambda: bool(holding(site.folder, own(here, 3))))
    newer = partition(here.user_id, here.collection, "test@2/16")
    await world.move(here, newer.space)
    await world.remove(newer, [name(here, 3)])
    await store.refresh(newer)
    assert holding(site.folder, own(here, 3)) == []


@CHILDREN
async def test_a_killed_child_starts_again_and_answers(site: Site, world: World) -> None:
    here = await filled(world)
    async with opened(site, world) as store:
        before = await store.search(here, own(here, 5), 10)
        kill(store)
        assert await store.search(here, own(here, 5), 10) == before
        await world.put(here, [("after-the-kill", own(here, 900))])
        kill(store)
        assert ids(await store.search(here, own(here, 900), 1)) == ["after-the-kill"]
        await world.remove(here, ["after-the-kill"])


@FAISS
async def test_killed_in_the_middle_of_searches_and_changes_it_answers_all(site: Site, world: World) -> None:
    here = await filled(world, 2000)
    async with opened(site, world) as store:
        await store.search(here, own(here, 1), 1)
        searches = [asyncio.create_task(store.search(here, own(here, number), 1)) for number in range(40)]
        await asyncio.sleep(0.005)
        kill(store)
        found = await asyncio.gather(*searches)
        assert [ids(each) for each in found] == [[name(here, number)] for number in range(40)]


@pytest.mark.parametrize("site", ["faiss", _SLOW[0]], indirect=True, scope="module")
async def test_it_opens_again_after_kill_9_and_knows_what_changed(site: Site, world: World) -> None:
    here = await filled(world)
    async with opened(site, world) as store:
        await store.search(here, own(here, 1), 1)
        await until(lambda: bool(holding(site.folder, own(here, 11))))
        kill(store)
    await world.remove(here, [name(here, 11)])
    async with opened(site, world) as store:
        await until(lambda: not holding(site.folder, own(here, 11)))  # swept, before anybody searches
        assert name(here, 11) not in ids(await store.search(here, own(here, 11), 100))
        assert ids(await store.search(here, own(here, 12), 1)) == [name(here, 12)]


@FAISS
async def test_damaged_files_are_seen_and_made_anew(site: Site, world: World) -> None:
    kinds = ["flip", "cut", "empty", "manifest", "other manifest", "no manifest", "folder", "nothing"]
    places = {what: await filled(world) for what in kinds}
    async with opened(site, world) as store:
        expected = {what: await store.search(here, own(here, 5), 50) for what, here in places.items()}
        for here in places.values():
            await saved(site, here)
    async with opened(site, world) as store:
        await asyncio.sleep(0.2)  # its sweep
        content = {path: path.read_bytes() for path in files(site, ".faiss")}
        for what, here in places.items():
            damage(next(path for path, data in content.items() if own(here, 9) in data), what)
        for what, here in places.items():
            assert await store.search(here, own(here, 5), 50) == expected[what], what
        assert any("was damaged" in line for line in store._process.log)  # type: ignore[attr-defined]


def damage(data: Path, what: str) -> None:
    """Spoils a saved partition."""
    manifest, content = data.with_suffix(".json"), bytearray(data.read_bytes())
    if what == "flip":
        content[-1] ^= 128  # the sign of a number in the last vector
        data.write_bytes(content)
    elif what == "cut":
        data.write_bytes(content[:-100])
    elif what == "empty":
        data.write_bytes(b"")
    elif what == "manifest":
        text = manifest.read_bytes()
        manifest.write_bytes(text.replace(b'"rows": 50', b'"rows": 49'))
    elif what == "other manifest":
        manifest.write_bytes(b'{"a": [')
    elif what == "no manifest":
        manifest.unlink()
    elif what == "folder":
        data.unlink()
        data.mkdir()


@pytest.mark.slow
@CHROMA
async def test_damaged_folders_of_chroma_are_made_anew(site: Site, world: World) -> None:
    places = {what: await filled(world, 300) for what in ("cut", "garbage", "gone")}
    async with opened(site, world) as store:
        expected = {what: await store.search(here, own(here, 5), 10) for what, here in places.items()}
    for what, here in places.items():
        database = next(path for path in files(site, "chroma.sqlite3") if own(here, 9) in path.read_bytes())
        if what == "cut":
            database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
        elif what == "garbage":
            database.write_bytes(b"\x00\xff" * 10_000)
        else:
            database.unlink()
    async with opened(site, world) as store:
        for what, here in places.items():
            assert await store.search(here, own(here, 5), 10) == expected[what], what


@FAISS
async def test_a_disk_that_takes_nothing_never_breaks_search(site: Site, world: World, tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("a file where the folder should be")
    blocked = Site(site.kind, site.settings.model_copy(update={"data_dir": tmp_path}), "")
    here = await filled(world)
    async with opened(blocked, world) as store:
        for _ in range(3):
            assert ids(await store.search(here, own(here, 4), 1)) == [name(here, 4)]
            await asyncio.sleep(0.5)  # it tries to save
        await world.remove(here, [name(here, 4)])
        await store.refresh(here)
        assert ids(await store.search(here, own(here, 4), 1)) != [name(here, 4)]


@FAISS
async def test_closed_it_says_so_and_starts_nothing(site: Site, world: World) -> None:
    here = await filled(world)
    store = site.store(world)
    await store.open()
    assert store.status()["state"] == "idle"
    await store.search(here, own(here, 1), 1)
    status = store.status()
    assert status["state"] == "ready" and status["rss_bytes"] > 0
    await store.aclose()
    await store.aclose()
    with pytest.raises(ShuttingDown):
        await store.search(here, own(here, 1), 1)
    with pytest.raises(ProcessLookupError):
        os.kill(status["pid"], 0)
