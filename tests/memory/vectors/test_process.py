"""The child process of a store: hangs, refuses to start, is fed nonsense; and a Chroma server that is away or shared."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from app.core.addresses import server_address
from app.core.errors import ConfigurationError, ShuttingDown, Unavailable
from app.db.database import Database
from app.memory.vectors import wire
from app.memory.vectors.chroma import ChromaServerStore
from app.memory.vectors.following import FollowingStore
from app.memory.vectors.layout import place
from app.memory.vectors.process import ChildGone, StoreProcess
from tests.memory.vectors.conftest import Site
from tests.memory.vectors.world import World, axis, ids, partition


def faiss(folder: Path, *, silent_s: float = 30) -> StoreProcess:
    """A child of FAISS."""
    return StoreProcess({"backend": "faiss", "folder": str(folder)}, silent_s=silent_s)


async def test_a_child_that_hangs_is_killed_and_the_next_call_answers(tmp_path: Path) -> None:
    process = faiss(tmp_path, silent_s=0.3)
    assert isinstance(await process.call(wire.Stats(), timeout_s=30), wire.Counts)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await process.call(wire.Stats(), timeout_s=0.5)
    assert isinstance(await process.call(wire.Stats(), timeout_s=30), wire.Counts)
    assert process.pid not in (None, first) and process.lives == 2
    await process.aclose()


async def test_waiting_callers_hear_that_it_died(tmp_path: Path) -> None:
    process = faiss(tmp_path)
    await process.call(wire.Stats(), timeout_s=30)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(process.call(wire.Stats(), timeout_s=20)) for _ in range(5)]
    await asyncio.sleep(0.05)
    calls[0].cancel()
    os.kill(pid, signal.SIGKILL)
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, ChildGone) for each in found[1:])
    await process.aclose()


async def test_answers_go_to_who_asked_though_others_left(tmp_path: Path) -> None:
    process = faiss(tmp_path)
    key = wire.Key("0" * 32, "1" * 32, "2" * 32, 16)
    calls = [asyncio.create_task(process.call(wire.Compare(key, [(f"{number}", "h")]), timeout_s=30)) for number in range(20)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for number, each in enumerate(found) if number % 3] == [wire.Missing([f"{n}"]) for n in range(20) if n % 3]
    await process.aclose()


async def test_it_does_not_start_and_says_so_but_does_not_try_each_time(tmp_path: Path) -> None:
    process = StoreProcess({"backend": "nothing", "folder": str(tmp_path)})
    for _ in range(6):
        with pytest.raises(Unavailable):
            await process.call(wire.Stats(), timeout_s=30)
    assert process.lives == 0 and process.error is not None
    assert any("KeyError" in line for line in process.log)
    await process.aclose()
    with pytest.raises(ShuttingDown):
        await process.call(wire.Stats(), timeout_s=1)


async def test_a_request_that_names_no_hashes_touches_no_path(tmp_path: Path) -> None:
    process = faiss(tmp_path / "vectors")
    evil = wire.Key("../../x", "1" * 32, "2" * 32, 16)
    for request in (wire.Compare(evil, []), wire.Forget("..", None), wire.Forget("0" * 32, "../x"), wire.Purge(evil)):
        assert isinstance(await process.call(request, timeout_s=30), wire.Failed)
    await process.aclose()
    with pytest.raises(ValueError, match="hashes"):
        place(tmp_path, evil)


@pytest.mark.slow
async def test_a_server_that_is_away_is_named_and_comes_back_by_itself(sqlite: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = World(sqlite)
    here = partition(await world.owner())
    await world.put(here, [("one", axis(0))])
    store = ChromaServerStore(world.source, server_address("memory.store", f"http://127.0.0.1:{port}"))
    await store.open()
    with pytest.raises(Unavailable, match=r"memory\.store"):
        await store.search(here, axis(0), 1)
    await store.aclose()


@pytest.mark.slow
async def test_a_name_that_leads_to_where_credentials_are_is_refused(sqlite: Database) -> None:
    process = StoreProcess({"backend": "chroma", "host": "169.254.169.254", "port": 80, "tls": False})
    world = World(sqlite)
    here = partition(await world.owner())
    await world.put(here, [("one", axis(0))])
    store = FollowingStore("chroma server", world.source, process)
    with pytest.raises(ConfigurationError, match="link-local"):
        await store.search(here, axis(0), 1)
    await store.aclose()


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("site", ["chroma server"], indirect=True, scope="module")
async def test_two_services_share_a_chroma_server(site: Site, world: World) -> None:
    one, two = site.store(world), site.store(world)
    here = partition(await world.owner())
    for turn in range(4):
        names = [f"s{turn}-{number}" for number in range(10)]
        await world.put(here, [(name, axis(number)) for number, name in enumerate(names)])
        found = await asyncio.gather(*(store.search(here, axis(0), 1000) for store in (one, two, one)))
        assert all(set(names) <= set(ids(each)) for each in found)
        await world.remove(here, names[:5])
        for store in (two, one):
            assert not set(names[:5]) & set(ids(await store.search(here, axis(0), 1000)))
    await one.aclose()
    await two.aclose()
