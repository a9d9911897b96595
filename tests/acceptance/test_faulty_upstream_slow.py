"""B18 from outside, the long form: a thousand faults and what they leave behind; a breaker over its real time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.doors import DOORS, Outcome, call
from tests.acceptance.faults import TEXT, truly_whole
from tests.acceptance.upstream_scene import EXPECTED, GOOD, KINDS, WHOLE_BY_EVENTS, Asking, Scene, every_fault, standing, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
IDLE_S = 15
"""How long the service keeps an unused connection to an upstream."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with standing(tmp_path_factory.mktemp("b18")) as made:
        yield made


def cuts(scene: Scene, chance: random.Random, count: int) -> list[Asking]:
    """Answers cut at many places, closed or reset."""
    calls: list[Asking] = []
    for number in range(count):
        kind, door, stream = KINDS[number % 2], DOORS[number // 2 % 4], number // 8 % 2 == 0
        by_events = chance.random() < 0.5
        at = number * 1000 // count
        whole = truly_whole(kind, stream=stream or by_events, thousandths=at)
        name = scene.name(f"{chance.choice(['cut', 'cut-reset'])}--{at}")
        expected = GOOD if whole else EXPECTED["cut"]
        calls.append((door, f"{kind}-far/{name}", stream, expected, WHOLE_BY_EVENTS if by_events else 16))
    return calls


async def test_a_thousand_faults_leave_nothing(scene: Scene) -> None:
    chance = random.Random(180)

    async def storm(times: int, positions: int) -> int:
        calls = every_fault(scene, times, chance) + cuts(scene, chance, positions)
        found = await sweep(scene, calls, at_once=20)
        assert not found, "\n".join(found)
        await asyncio.to_thread(scene.settle)
        return len(calls)

    await asyncio.sleep(IDLE_S + 1)
    descriptors = scene.descriptors()
    count = await storm(4, 200)  # until all 256 clients are there, and whatever else grows once
    count += await storm(3, 200)
    before = scene.service.rss()
    count += await storm(3, 200)
    grown = scene.service.rss() - before
    assert count > 1000 < scene.faults.requests.total()
    for door in DOORS:
        begun = time.monotonic()
        outcome = await call(scene.client, door, f"openai-far/{scene.name('good')}", stream=True)
        assert (outcome.text, outcome.complaints) == (TEXT, []), str(outcome)
        assert time.monotonic() - begun < 1
    await asyncio.sleep(IDLE_S + 2)
    assert not scene.faults.open, "connections to upstreams are left"
    assert scene.descriptors() <= descriptors
    assert grown < 8 << 20, f"{grown >> 20} MiB more after {count} faults"
    print(f"\n{count} faults, {scene.faults.requests.total()} requests upstream: {grown >> 10} KiB more over the last third")


async def test_a_breaker_over_its_time(scene: Scene) -> None:
    healed, broken = scene.name("500"), scene.name("500")

    async def several(model: str, count: int) -> list[Outcome]:
        return await asyncio.gather(
            *(call(scene.client, DOORS[n % 4], f"claude-far/{model}", stream=n < 5) for n in range(count))
        )

    for model in (healed, broken):
        while scene.faults.requests[model] < 5:
            assert (await several(model, 1))[0].status == 502
    opened = time.monotonic()
    scene.faults.heal(healed)
    while time.monotonic() < opened + 28:
        for model in (healed, broken):
            assert [each.status for each in await several(model, 4)] == [503] * 4
        await asyncio.sleep(2)
    assert scene.faults.requests[healed] == scene.faults.requests[broken] == 5
    await asyncio.sleep(opened + 30.5 - time.monotonic())

    outcomes = await several(healed, 10)
    assert sorted(each.status for each in outcomes) == [200] + [503] * 9, "one goes and sees"
    assert all(each.text.lower() == TEXT for each in await several(healed, 10)), "then all go again"
    assert scene.faults.requests[healed] == 5 + 11

    outcomes = await several(broken, 10)
    assert sorted(each.status for each in outcomes) == [502] + [503] * 9
    assert scene.faults.requests[broken] == 6
    refused = (await several(broken, 1))[0]
    assert 50 < int(refused.headers["retry-after"]) <= 60, "the next pause is longer"
