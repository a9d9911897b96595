"""Rate limits: windows in any position, per /64, failures only for logins, and no lockout of others."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits.aio.storage import MemoryStorage

from app.core.errors import NotFound, TooManyRequests, Unauthenticated
from app.core.settings import RateLimits
from app.security.rate_limit import MemoryWindows, RateLimiter, RateState
from tests.security.world import PASSWORD, Clock, World


def limiter(clock: Clock, **limits: str) -> RateLimiter:
    return RateLimiter(RateLimits.model_validate(limits), clock=clock.monotonic)


async def test_a_limit_and_its_headers() -> None:
    clock = Clock()
    limits = limiter(clock, predict="3/minute")
    states = [await limits.check("predict", "ada") for _ in range(3)]
    assert [state.remaining for state in states] == [2, 1, 0]
    assert states[0].headers() == [("RateLimit-Policy", '"predict";q=3;w=60'), ("RateLimit", '"predict";r=2;t=62')]
    with pytest.raises(TooManyRequests) as caught:
        await limits.check("predict", "ada")
    assert 57 < (caught.value.retry_after or 0) <= 63
    assert (await limits.check("predict", "eve")).remaining == 2
    clock.advance(caught.value.retry_after or 0)
    assert (await limits.check("predict", "ada")).remaining == 2


async def test_each_subject_has_a_count_of_its_own_and_limits_do_not_mix() -> None:
    limits = limiter(Clock(), predict="2/minute", feedback="2/minute")
    await limits.check("predict", "ada", "key 1")
    assert (await limits.check("predict", "ada", "key 2")).remaining == 0
    with pytest.raises(TooManyRequests):
        await limits.check("predict", "ada", "key 3")
    assert (await limits.check("predict", "eve", "key 3")).remaining == 1
    assert (await limits.check("feedback", "ada")).remaining == 1


async def test_ipv6_counts_per_64_and_mapped_addresses_as_ipv4() -> None:
    limits = limiter(Clock(), api="2/minute")
    await limits.check("api", "2001:db8:1:2::1")
    await limits.check("api", "2001:db8:1:2:ffff::9")
    with pytest.raises(TooManyRequests):
        await limits.check("api", "2001:DB8:1:2::77")
    await limits.check("api", "2001:db8:1:3::1")
    await limits.check("api", "192.0.2.1")
    await limits.check("api", "::ffff:192.0.2.1")
    with pytest.raises(TooManyRequests):
        await limits.check("api", "192.0.2.1")


async def test_switched_off() -> None:
    limits = RateLimiter(RateLimits(enabled=False, predict="1/minute"))
    assert [(await limits.check("predict", "ada")).remaining for _ in range(3)] == [1, 1, 1]
    for _ in range(60):
        with pytest.raises(Unauthenticated):
            async with limits.login_attempt("ada", "192.0.2.1"):
                raise Unauthenticated


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=30, max_size=120))
def test_no_window_of_any_position_holds_more_than_the_limit(gaps: list[float]) -> None:
    async def run() -> None:
        clock = Clock()
        windows = MemoryWindows(clock=clock.monotonic)
        taken: deque[float] = deque()
        for gap in gaps:
            clock.advance(gap)
            before = [at for at in taken if clock.seconds - at <= 60]
            free = [at for at in taken if clock.seconds - at <= 63]
            if await windows.acquire_entry("k", 5, 60):
                assert len(before) < 5
                taken.append(clock.seconds)
            else:
                assert len(free) >= 5  # late by one twentieth at most
            start, used = await windows.get_moving_window("k", 5, 60)
            assert used <= 5 and clock.seconds - 63 <= start <= clock.seconds + 3

    asyncio.run(run())


async def test_memory_is_bounded() -> None:
    clock = Clock()
    windows = MemoryWindows(clock=clock.monotonic, max_keys=100)
    for number in range(250):
        await windows.acquire_entry(f"k{number}", 5, 60)
    assert len(windows) == 100
    clock.advance(70)
    await windows.acquire_entry("fresh", 5, 60)
    assert len(windows) == 1


async def test_another_storage_of_the_library_fits() -> None:
    limits = RateLimiter(RateLimits(predict="2/minute"), storage=MemoryStorage(), clock=__import__("time").time)
    assert [(await limits.check("predict", "ada")).remaining for _ in range(2)] == [1, 0]
    with pytest.raises(TooManyRequests) as caught:
        await limits.check("predict", "ada")
    assert 0 < (caught.value.retry_after or 0) <= 61


async def fail(limits: RateLimiter, account: str, address: str) -> bool:
    """A failed login; whether it was let through."""
    try:
        async with limits.login_attempt(account, address):
            raise Unauthenticated
    except Unauthenticated:
        return True
    except TooManyRequests:
        return False


async def test_failed_logins_per_account_and_per_address() -> None:
    clock = Clock()
    limits = limiter(clock, login="10/minute")
    assert [await fail(limits, "ada", "192.0.2.1") for _ in range(12)] == [True] * 10 + [False] * 2
    async with limits.login_attempt("ada", "192.0.2.2"):
        pass  # the owner, from elsewhere
    assert sum([await fail(limits, f"user{number}", "192.0.2.1") for number in range(60)]) == 40
    assert await fail(limits, "eve", "192.0.2.3")
    clock.advance(64)
    assert await fail(limits, "ada", "192.0.2.1")


async def test_nobody_guesses_on_slowly_for_ever() -> None:
    clock = Clock()
    limits = limiter(clock, login="10/minute")
    passed = 0
    for _ in range(200):
        passed += await fail(limits, "ada", "192.0.2.1")
        clock.advance(60)
    assert passed == 100
    assert await fail(limits, "ada", "192.0.2.2")
    clock.advance(86_400 * 1.05)
    assert await fail(limits, "ada", "192.0.2.1")


async def test_only_failures_count_and_giving_up_is_one() -> None:
    limits = limiter(Clock(), login="2/minute")
    for _ in range(5):
        async with limits.login_attempt("ada", "a"):
            pass
        with pytest.raises(NotFound):
            async with limits.login_attempt("ada", "a"):
                raise NotFound
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            async with limits.login_attempt("ada", "a"):
                raise asyncio.CancelledError
    assert not await fail(limits, "ada", "a")


async def test_many_at_once_do_not_slip_through() -> None:
    limits = limiter(Clock(), login="10/minute")
    release = asyncio.Event()

    async def slow() -> bool:
        try:
            async with limits.login_attempt("ada", "a"):
                await release.wait()
                raise Unauthenticated
        except Unauthenticated:
            return True
        except TooManyRequests:
            return False

    tasks = [asyncio.create_task(slow()) for _ in range(40)]
    await asyncio.sleep(0)
    release.set()
    assert sum(await asyncio.gather(*tasks)) == 10


async def test_login_is_throttled_with_a_retry_after_and_nobody_is_locked_out(world: World) -> None:
    await world.user()
    async with world.client(address="198.51.100.9") as attacker:
        for number in range(12):
            # headers that a stranger writes change nothing
            forged = {
                "x-forwarded-for": f"192.0.2.{number}",
                "x-real-ip": f"192.0.2.{number}",
                "forwarded": f"for=192.0.2.{number}",
            }
            body = {"username": "ada", "password": f"guess number {number}"}
            answer = await attacker.post("/auth/login", json=body, headers=forged)
            assert answer.status_code == (401 if number < 10 else 429)
        assert int(answer.headers["retry-after"]) > 0
        right = await attacker.post("/auth/login", json={"username": "ada", "password": PASSWORD})
        assert right.status_code == 429
    async with world.client(address="198.51.100.10") as owner:
        assert (await owner.post("/auth/login", json={"username": "ada", "password": PASSWORD})).status_code == 200
    assert world.metrics.registry.get_sample_value("aprendiz_logins_total", {"result": "refused"}) == 3


async def test_guessing_invites_is_limited(world: World) -> None:
    async with world.client() as client:
        body = {"username": "eve", "password": PASSWORD, "invite": "guess"}
        statuses = [(await client.post("/auth/register", json=body)).status_code for _ in range(55)]
    assert statuses == [403] * 50 + [429] * 5


def test_state_is_plain() -> None:
    assert RateState("api", 5, 4, 0.2, 60).headers()[1] == ("RateLimit", '"api";r=4;t=1')
