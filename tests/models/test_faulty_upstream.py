"""B18 on real sockets: a server that fails in every way, with the real client, breaker and deadlines before it."""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from app.core.errors import AprendizError, UpstreamCoolingDown, UpstreamUnreachable
from app.core.metrics import Metrics
from app.core.settings import Model, Providers, Routing
from app.models.live import LiveGeneration
from app.models.model_manager import ModelManager, ModelStores
from app.models.tries import Tries
from app.providers.base import ProviderContext
from app.providers.chunks import ChunkReader
from app.providers.registry import ProviderRegistry
from app.providers.sse import SseParser
from tests.models.doubles import (
    TIMEOUT_S,
    MemoryAliases,
    MemoryAudit,
    MemoryPredictions,
    MemoryVersions,
    ask,
    until,
    user,
)
from tests.models.remote import route
from tests.vendors.openai_server import Completion, OpenAIServer, failure
from tests.vendors.replay import Raw, Received, Reply, Scripted, as_json

EVENTS = {"Content-Type": "text/event-stream"}
DEADLINE_S = 1.0
GOOD = Completion(text="all is well", pieces=("all ", "is ", "well"))
FAULTS: dict[str, Any] = {
    "silence after the head": Reply(headers=EVENTS, pieces=(b": hi\n\n",), hang=True),
    "reset": Raw(reset=True),
    "closed at once": Raw(),
    "half a head": Raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "garbage": Raw(b"\x16\x03\x01 this is no HTTP \xff\xfe\r\n\r\n"),
    "cut stream": Completion(text="all is well", pieces=("all ", "is ", "well"), cut_after=2),
    "cut in a chunk": Raw(
        b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n40\r\ndata: {"cho'
    ),
    "error in the stream": Completion(text="all is well", pieces=("all ", "is ", "well"), error_after=2),
    "no events": Reply(headers={"Content-Type": "text/html"}, pieces=(b"<h1>Welcome to nginx</h1>",)),
    "error with status 200": as_json({"error": {"message": "no", "type": "server_error", "param": None, "code": None}}),
    "no JSON": Reply(headers=EVENTS, pieces=(b"data: {nonsense\n\n",)),
    "a byte at a time": Reply(headers=EVENTS, pieces=tuple(bytes([each]) for each in b"data: " * 4), pause_s=0.02),
    "500": failure("server_error"),
    "502 of a proxy": Reply(502, (b"<html>Bad Gateway</html>",), {"Content-Type": "text/html"}),
    "503": failure("overloaded"),
    "429 with a pause": failure("rate_limit"),
    "429": failure("rate_limit_bare"),
    "401": failure("invalid_key"),
    "no money": failure("quota"),
}


class FaultyServer(OpenAIServer):
    """Does what ``choose`` says, and counts it; a name that is no fault is a good answer."""

    def __init__(self, choose: Callable[[], str]) -> None:
        super().__init__()
        self.choose = choose
        self.done: collections.Counter[str] = collections.Counter()

    async def answer(self, request: Received) -> Scripted:
        name = self.choose()
        self.done[name] += 1
        if name == "silence before the head":
            await asyncio.sleep(0.4)
        return self.render(FAULTS.get(name, GOOD), request)


Make = Callable[..., Awaitable[ModelManager]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    managers: list[ModelManager] = []
    with TemporaryDirectory(prefix="apr-") as folder:

        async def build(routes: Any, **upstreams: str) -> ModelManager:
            model = Model(provider="echo", model="echo", preload=False, queue=5000, queue_per_user=5000)
            fields = {"models": ["*"], "read_timeout_s": 0.2, "connect_timeout_s": 2}
            providers = Providers.model_validate(
                {"upstreams": {name: {"base_url": url, **fields} for name, url in upstreams.items()}}
            )
            context = ProviderContext(model, providers, Path(folder), Path(folder), lambda name: None)
            manager = ModelManager(
                model,
                providers=ProviderRegistry(context, providers.allowed),
                stores=ModelStores(MemoryPredictions(), MemoryVersions(), MemoryAliases(), MemoryAudit()),
                metrics=Metrics(),
                routing=Routing.model_validate({"models": routes}),
                upstreams=providers.upstreams,
                rng=random.Random(1),
            )
            managers.append(manager)
            await manager.start()
            return manager

        yield build
        for manager in managers:
            await manager.aclose()


@pytest.fixture
def quiet() -> Any:
    logging.getLogger("app").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("app").setLevel(logging.NOTSET)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def ended(manager: ModelManager, model: str) -> tuple[str, float]:
    """How a call ended: its text, or the slug of its error; and after how many seconds."""
    began = time.monotonic()
    try:
        answer = (await manager.answer(ask("hi", model=model), user())).answer
    except AprendizError as error:
        return error.slug, time.monotonic() - began
    return answer.text, time.monotonic() - began


@pytest.mark.usefixtures("quiet")
async def test_a_thousand_faults_leak_nothing_and_no_cut_answer_looks_whole(make: Make) -> None:
    rng = random.Random(18)
    names = [*FAULTS, "silence before the head", "good", "good"]
    tasks = len(asyncio.all_tasks())
    async with FaultyServer(lambda: rng.choice(names)) as server:
        before = descriptors()
        manager = await make({}, far=server.url)
        gate = asyncio.Semaphore(300)

        async def call(number: int) -> tuple[str, float]:
            async with gate:
                return await ended(manager, f"far/m{number % 250}")

        results = await asyncio.gather(*(call(number) for number in range(1300)))
        assert server.done.total() - server.done["good"] >= 1000
        assert min(server.done[name] for name in names) >= 20, "each fault was met"
        texts = collections.Counter(text for text, _ in results)
        known = {"all is well", *(f"upstream-{name}" for name in ("timeout", "unreachable", "error", "busy", "refused"))}
        assert known <= set(texts) <= known | {"upstream-cooling-down"}
        await manager.aclose()
        await until(lambda: server.open == 0)
        assert descriptors() <= before
    assert len(asyncio.all_tasks()) <= tasks + 1


@pytest.mark.usefixtures("quiet")
async def test_the_deadline_holds_whatever_the_servers_do(make: Make) -> None:
    rng = random.Random(19)
    names = [*FAULTS, "silence before the head"]
    async with FaultyServer(lambda: rng.choice(names)) as first, FaultyServer(lambda: rng.choice(names)) as second:
        targets = [f"{upstream}/m{number}" for number in range(4) for upstream in ("one", "two")]
        routes = {f"r{number}": route(*targets, strategy="weights", retries=3, deadline_s=DEADLINE_S) for number in range(8)}
        manager = await make(routes, one=first.url, two=second.url)
        results = await asyncio.gather(*(ended(manager, f"r{number % 8}") for number in range(150)))
        assert max(seconds for _, seconds in results) < DEADLINE_S + 1
        await until(lambda: manager.status().running == manager.status().waiting == 0)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fault", [name for name in FAULTS if not name.startswith(("cut stream", "error in the"))])
async def test_each_fault_of_the_first_is_survived_by_the_second(make: Make, fault: str) -> None:
    async with FaultyServer(lambda: fault) as first, FaultyServer(lambda: "good") as second:
        manager = await make({"r": route("one/m", "two/m")}, one=first.url, two=second.url)
        for _ in range(7):
            completed = await manager.answer(ask("hi", model="r"), user())
            assert (completed.answer.text, completed.prediction.provider) == ("all is well", "two")
            assert completed.prediction.fallback is not None
        assert first.done.total() <= 5, "after five failures, or one plea for a pause, it is left alone"
        assert second.done["good"] == 7


@pytest.mark.usefixtures("quiet")
async def test_nobody_there(make: Make) -> None:
    async with FaultyServer(lambda: "good") as alive:
        async with FaultyServer(lambda: "good") as dead:
            gone = dead.url
        manager = await make({"r": route("gone/m", "alive/m")}, gone=gone, alive=alive.url)
        completed = await manager.answer(ask("hi", model="r"), user())
        assert completed.prediction.fallback == "upstream-unreachable"
        with pytest.raises(UpstreamUnreachable):
            await manager.answer(ask("hi", model="gone/m"), user())


@pytest.mark.usefixtures("quiet")
async def test_a_pause_that_the_server_asks_for_is_kept_for_that_model_alone(make: Make) -> None:
    said = iter(["429 with a pause"])
    async with FaultyServer(lambda: next(said, "good")) as server:
        manager = await make({"r": route("far/m", "far/other")}, far=server.url)
        assert (await manager.answer(ask("hi", model="r"), user())).prediction.model == "other"
        with pytest.raises(UpstreamCoolingDown) as caught:
            await manager.answer(ask("hi", model="far/m"), user())
        assert caught.value.retry_after is not None and 5 < caught.value.retry_after <= 7
        assert server.done.total() == 2


@pytest.mark.usefixtures("quiet")
async def test_evicting_clients_under_load_harms_no_answer(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.models.pool._MOST_REMOTE", 8)
    async with FaultyServer(lambda: "good") as server:
        manager = await make({}, far=server.url)
        gate = asyncio.Semaphore(6)

        async def call(number: int) -> tuple[str, float]:
            async with gate:
                return await ended(manager, f"far/m{number % 23}")

        async with asyncio.timeout(TIMEOUT_S):
            results = await asyncio.gather(*(call(number) for number in range(300)))
        assert {text for text, _ in results} == {"all is well"}


@pytest.mark.usefixtures("quiet")
async def test_a_storm_of_failures_is_not_answered_by_a_storm_of_retries(make: Make) -> None:
    async with FaultyServer(lambda: "500") as server:
        manager = await make({}, far=server.url)
        calls = 150
        results = await asyncio.gather(*(ended(manager, f"far/m{number}") for number in range(calls)))
        assert {text for text, _ in results} == {"upstream-error"}
        assert calls + 3 <= server.done.total() <= calls * 1.5


def kept() -> list[str]:
    """What holds the pieces of an answer, by type, as long as anything holds it."""
    holders = LiveGeneration | Tries | SseParser | ChunkReader
    return sorted(type(each).__name__ for each in gc.get_objects() if isinstance(each, holders))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fault", ["silence after the head", "reset", "cut stream", "error in the stream", "no JSON", "500"])
async def test_what_was_read_goes_with_the_call(make: Make, fault: str) -> None:
    """Not when the collector finds a ring of errors and tracebacks: an answer may have many megabytes."""
    async with FaultyServer(lambda: fault) as server:
        targets = [f"far/m{number}" for number in range(3)]
        routes = {"r": route(*targets, deadline_s=0.7), "hasty": route("far/m", deadline_s=0.1)}
        manager = await make(routes, far=server.url)
        await ended(manager, "far/first")
        gc.collect()
        gc.disable()
        try:
            before = kept()
            for name in ("r", "hasty", "far/other"):
                await ended(manager, name)
            await until(lambda: manager.status().running == 0)
            await asyncio.sleep(0.05)
            assert kept() == before
        finally:
            gc.enable()
