"""The watch over a stream, with a client that takes what its test says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from starlette.types import Message

from app.api import watch
from app.api.deps import Services
from app.api.watch import ReaderTooSlow, Watch
from app.core.types import Principal


class Authenticator:
    """Every session is good."""

    async def still_valid(self, principal: Principal) -> bool:
        return True


class Parts:
    authenticator = Authenticator()


class Client:
    """Takes ``takes`` pieces, and then nothing any more."""

    def __init__(self, takes: int) -> None:
        self.taken: list[bytes] = []
        self.all_taken = asyncio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if len(self.taken) == self._takes:
            await asyncio.Event().wait()
        self.taken.append(message["body"])
        if len(self.taken) == self._takes:
            self.all_taken.set()


def watching(client: Client) -> Watch:
    person = Principal("u", "ada", "user", frozenset(), via="session", session_id="s")
    return Watch(cast(Services, Parts()), person, client.send, heartbeat=b":\n\n")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TICK_S", 0.01), ("HEARTBEAT_S", 0.02), ("STUCK_S", 0.1)):
        monkeypatch.setattr(watch, name, seconds)


async def test_a_silent_stream_shows_life() -> None:
    client = Client(takes=3)
    async with watching(client):
        await client.all_taken.wait()
    assert client.taken == [b":\n\n"] * 3


@pytest.mark.parametrize("work", ["waits for the model", "has the next piece"])
async def test_who_takes_no_heartbeat_is_cut(work: str) -> None:
    client = Client(takes=1)

    async def serve() -> Any:
        async with watching(client) as stream:
            await stream.send(b"a")
            await asyncio.sleep(0.05)  # a heartbeat is on its way now
            if work == "has the next piece":
                await stream.send(b"b")
            await asyncio.sleep(60)

    with pytest.raises(ReaderTooSlow):
        await asyncio.wait_for(serve(), 5)
