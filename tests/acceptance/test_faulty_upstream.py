"""B18 from outside: upstreams that fail in every way, asked through every door. The short form; see also `_slow`."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.acceptance.doors import DOORS, PATHS, Client, Door, body_of, call
from tests.acceptance.faults import FAULTS, TEXT, Kind
from tests.acceptance.upstream_scene import (
    EXPECTED,
    GOOD,
    KINDS,
    UNREACHABLE,
    Asking,
    Scene,
    every_fault,
    standing,
    sweep,
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with standing(tmp_path_factory.mktemp("b18")) as made:
        yield made


@pytest.fixture(autouse=True)
def _settled(scene: Scene) -> Iterator[None]:
    yield
    scene.settle()


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what happens in another thread; at most two seconds, then the test's own assertion tells."""
    end = time.monotonic() + 2
    while not holds() and time.monotonic() < end:  # noqa: ASYNC110  # no event of this loop tells
        await asyncio.sleep(0.02)


def test_every_fault_is_known() -> None:
    assert EXPECTED.keys() == FAULTS.keys()


async def test_every_fault_through_the_doors(scene: Scene) -> None:
    found = await sweep(scene, every_fault(scene, 2, random.Random(18)), at_once=20)
    assert not found, "\n".join(found)
    assert scene.faults.paths["/redirected"] == 0


async def test_retries_do_not_feed_a_storm(scene: Scene) -> None:
    storm = 60
    models = [scene.name("slow-500") for _ in range(storm)]
    scene.faults.most_retrying = 0
    calls = [call(scene.client, "predict", f"openai-far/{model}", stream=bool(n % 2)) for n, model in enumerate(models)]
    outcomes = await asyncio.gather(*calls)
    assert {(each.slug, each.status) for each in outcomes} == {("upstream-error", 502)}
    assert 3 <= scene.faults.most_retrying <= storm // 5
    assert all(scene.faults.requests[model] <= 2 for model in models)

    # Few calls: three of them may retry at once, whatever their share.
    scene.faults.most_retrying = 0
    models = [scene.name("slow-500") for _ in range(6)]
    await asyncio.gather(*(call(scene.client, "chat", f"openai-far/{model}", stream=True) for model in models))
    assert scene.faults.most_retrying <= 3


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failing_upstream_is_left_alone_and_its_fallback_is_marked(scene: Scene, kind: Kind) -> None:
    for number, door in enumerate(DOORS):
        bad = f"500--{kind}{number}"
        for turn in range(10):
            outcome = await call(scene.client, door, f"{kind}-pair-{number}", stream=bool(turn % 2))
            assert (outcome.text.lower(), outcome.ended, outcome.complaints) == (TEXT, True, []), str(outcome)
            slug = "upstream-error" if turn < 5 else "upstream-cooling-down"
            assert outcome.headers["x-aprendiz-fallback"] == slug
            if door in ("chat", "messages") and not outcome.stream:
                assert outcome.body["aprendiz"]["fallback"] == slug
        assert scene.faults.requests[bad] == 5, "after five failures in a row it is not asked"
        label = f"{kind}-far/{bad}"
        assert scene.value("aprendiz_breaker_state", model=label) == 2
        assert scene.value("aprendiz_fallbacks_total", **{"from": label}) == 10
        assert scene.value("aprendiz_breaker_state", model=f"{kind}-far/good--{kind}{number}") == 0
        refused = await call(scene.client, door, label, stream=True)
        assert (refused.status, refused.complaints) == (503, [])
        assert 20 <= int(refused.headers["retry-after"]) <= 30
        # Another model of the same upstream, and the same model elsewhere, are not its business.
        assert (await call(scene.client, door, f"{kind}-far/{scene.name('good')}", stream=True)).text == TEXT
        assert (await call(scene.client, door, f"{kind}-quick/{bad}", stream=False)).slug != "upstream-cooling-down"


async def test_a_pause_that_was_asked_for_is_passed_on(scene: Scene) -> None:
    for fault, at_least, at_most in (("busy-60", 59, 60), ("busy-date", 38, 41), ("overloaded", 29, 30)):
        for kind in KINDS:
            model = scene.name(fault)
            for turn, door in enumerate(DOORS):
                outcome = await call(scene.client, door, f"{kind}-far/{model}", stream=bool(turn % 2))
                assert (outcome.status, outcome.complaints) == (503, []), str(outcome)
                assert at_least - 1 <= int(outcome.headers["retry-after"]) <= at_most, str(outcome)
            assert scene.faults.requests[model] == 1


async def test_no_connection_comes_about(scene: Scene) -> None:
    calls: list[Asking] = []
    for kind, (turn, door) in itertools.product(KINDS, enumerate(DOORS)):
        for upstream in ("dead", "deaf", "expired", "stranger", "elsewhere", "trusted"):
            expected = GOOD if upstream == "trusted" else UNREACHABLE
            calls.append((door, f"{kind}-{upstream}/{scene.name('good')}", bool(turn % 2), expected, 16))
    found = await sweep(scene, calls, at_once=24)
    assert not found, "\n".join(found)


async def test_an_answer_before_the_question(scene: Scene) -> None:
    """A server that speaks first is not heard: what it said belongs to no request."""
    for turn, door in enumerate(DOORS):
        outcome = await call(scene.client, door, f"openai-eager/{scene.name('good')}", stream=bool(turn % 2))
        assert outcome.complaints == []
        assert outcome.failed != outcome.ended


async def test_connections_that_went_stale(scene: Scene) -> None:
    """The server closes a kept connection under each second request: nobody notices."""
    for fault in ("stale", "stale-reset"):
        for kind in KINDS:
            model = f"{kind}-far/{scene.name(fault)}"
            for turn, door in enumerate(DOORS * 2):
                outcome = await call(scene.client, door, model, stream=turn < 4)
                assert (outcome.text.lower(), outcome.complaints) == (TEXT, []), str(outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_clients_raise_when_a_stream_is_cut(scene: Scene, kind: Kind) -> None:
    v1, key = f"{scene.service.url}/v1", scene.headers["Authorization"].partition(" ")[2]
    words: list[Any] = [{"role": "user", "content": "x"}]
    with (
        openai.OpenAI(base_url=v1, api_key=key, max_retries=0) as gpt,
        anthropic.Anthropic(base_url=scene.service.url, api_key=key, max_retries=0) as claude,
    ):
        for fault in ("no-end-bare", "cut--700", "error-within", "hang-within"):
            models = [f"{kind}-quick/{scene.name(fault)}" for _ in range(3)]
            chunks: list[Any] = []
            with pytest.raises(openai.APIError):
                chunks.extend(gpt.chat.completions.create(model=models[0], messages=words, stream=True))
            assert not [chunk for chunk in chunks if chunk.choices[0].finish_reason]
            with pytest.raises(openai.APIError):
                list(gpt.responses.create(model=models[1], input="x", stream=True))
            with (
                pytest.raises(anthropic.APIError),
                claude.messages.stream(model=models[2], max_tokens=9, messages=words) as stream,
            ):
                stream.get_final_message()


async def test_a_client_that_leaves_ends_the_work_at_the_upstream(scene: Scene) -> None:
    """Wherever it leaves: before anything came, within the stream, or waiting for the whole answer."""

    async def leave(kind: Kind, door: Door, fault: str, stream: bool) -> tuple[str, float]:
        model = scene.name(fault)
        async with scene.client.connected(PATHS[door], body_of(door, f"{kind}-far/{model}", stream=stream)) as reader:
            if stream and fault != "hang":
                await reader.readuntil(b"all")
            await until(lambda: scene.faults.requests[model] > 0)
        left = time.monotonic()
        await until(lambda: model in scene.faults.left)
        return f"{kind} {door} {fault} {stream}", scene.faults.left.get(model, left + 99) - left

    ways = [("hang", True), ("hang", False), ("hang-within", True), ("hang-within", False), ("drip-within", True)]
    took = await asyncio.gather(*(leave(*each, *way) for each in itertools.product(KINDS, DOORS) for way in ways))
    assert not [each for each in took if each[1] > 1]


async def test_evicting_clients_under_load_harms_no_answer(scene: Scene) -> None:
    """More models than there are clients for (256), while some of them stream."""
    gate = asyncio.Semaphore(16)

    async def short(number: int) -> str:
        async with gate:
            model = f"{KINDS[number % 2]}-far/{scene.name('good')}"
            return (await call(scene.client, DOORS[number % 4], model, stream=number % 3 == 0)).text

    gentle = [call(scene.client, door, f"{kind}-far/{scene.name('gentle')}", stream=True) for door in DOORS for kind in KINDS]
    outcomes = asyncio.gather(*gentle)
    assert set(await asyncio.gather(*(short(number) for number in range(280)))) == {TEXT}
    for outcome in await outcomes:
        assert (outcome.text, outcome.ended, outcome.complaints) == (TEXT, True, []), str(outcome)


async def test_a_slow_upstream_slows_nobody_else(scene: Scene) -> None:
    nobody = Client(scene.service.url)
    good = f"openai-far/{scene.name('good')}"

    async def times() -> list[float]:
        """How long the simplest question and a call of a good upstream take, again and again."""
        taken = []
        for number in range(20):
            begun = time.monotonic()
            await nobody.ask("/health/live")
            assert (await call(scene.client, DOORS[number % 4], good, stream=bool(number % 2))).ended
            taken.append(time.monotonic() - begun)
        return taken

    before = await times()
    models = [f"openai-far/{scene.name('latency')}" for _ in range(80)]
    slow = [asyncio.create_task(call(scene.client, "chat", model, stream=True)) for model in models]
    await until(lambda: len(scene.faults.playing) == len(models))
    during = await times()
    for outcome in await asyncio.gather(*slow):
        assert (outcome.status, outcome.slug) == (504, "upstream-timeout"), str(outcome)
    assert statistics.median(during) < 2 * statistics.median(before) + 0.05, f"{before} {during}"
