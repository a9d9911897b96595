"""The fair queue: by hand, through seeded random histories, and with coroutines on a clock that stands still."""

from __future__ import annotations

import asyncio
import random

import pytest

from app.core.errors import Overloaded, QueueFullForUser, ShuttingDown
from app.models.scheduler import FairQueue, Scheduler, Ticket
from tests.models.doubles import Clock, until


class Queue:
    """A `FairQueue` with its time and the order of its grants."""

    def __init__(self, slots: int = 1, limit: int = 1000, per_user: int = 1000, timeout_s: float = 1e9) -> None:
        self.now = 0.0
        self.granted: list[Ticket] = []
        self.queue = FairQueue(
            slots=slots, limit=limit, limit_per_user=per_user, timeout_s=timeout_s, on_grant=self.granted.append
        )

    def enter(self, user: str) -> Ticket:
        return self.queue.enter(user, self.now)

    def leave(self, ticket: Ticket) -> None:
        self.queue.leave(ticket, self.now)


def test_slots_are_given_at_once_and_no_more_than_there_are() -> None:
    q = Queue(slots=2)
    tickets = [q.enter("ana") for _ in range(3)]
    assert [ticket.running for ticket in tickets] == [True, True, False]
    assert (q.queue.running, q.queue.waiting) == (2, 1)
    q.leave(tickets[0])
    assert q.granted == [tickets[2]]
    assert (q.queue.running, q.queue.waiting) == (2, 0)


def test_a_heap_of_one_user_does_not_delay_anothers_first() -> None:
    q = Queue(slots=1)
    running = q.enter("greedy")
    heap = [q.enter("greedy") for _ in range(100)]
    first = q.enter("ana")
    q.leave(running)
    assert q.granted == [first]
    q.leave(first)
    assert q.granted[1] is heap[0]


def test_the_slot_goes_to_who_has_fewest_running() -> None:
    q = Queue(slots=3)
    running = [q.enter("ana"), q.enter("ana"), q.enter("bea")]
    waiting = {name: q.enter(name) for name in ("ana", "bea", "cleo")}
    q.leave(running[0])
    assert q.granted == [waiting["cleo"]]
    q.leave(running[1])
    assert q.granted[1] is waiting["ana"], "ana runs nothing now, bea runs one"


def test_users_take_turns_and_newcomers_join_the_end() -> None:
    q = Queue(slots=1)
    current = q.enter("zoe")
    names = {}
    for index in range(3):
        for name in ("ana", "bea", "cleo"):
            names[q.enter(name)] = f"{name}{index}"
    order = []
    for step in range(9):
        q.leave(current)
        current = q.granted[-1]
        order.append(names.get(current, "dan"))
        if step == 0:
            names[q.enter("dan")] = "dan"
    assert order == ["ana0", "bea0", "cleo0", "dan", "ana1", "bea1", "cleo1", "ana2", "bea2"]


def test_a_crowd_of_newcomers_starves_nobody() -> None:
    q = Queue(slots=1)
    current = q.enter("first")
    old = q.enter("old")
    for index in range(200):
        q.enter(f"new{index}")
        q.leave(current)
        current = q.granted[-1]
        if current is old:
            return
    pytest.fail("never served")


def test_bounds_say_when_to_come_back() -> None:
    q = Queue(slots=1, limit=3, per_user=2)
    q.enter("ana")
    q.enter("ana")
    q.enter("ana")
    with pytest.raises(QueueFullForUser) as mine:
        q.enter("ana")
    assert mine.value.retry_after is not None and mine.value.retry_after >= 1
    q.enter("bea")
    with pytest.raises(Overloaded) as all_full:
        q.enter("cleo")
    assert all_full.value.retry_after is not None and all_full.value.retry_after >= mine.value.retry_after
    assert q.queue.waiting == 3


def test_retry_after_follows_recent_service_times() -> None:
    slow, fast = Queue(slots=1), Queue(slots=1)
    for q, seconds in ((slow, 60.0), (fast, 0.1)):
        for _ in range(30):
            ticket = q.enter("ana")
            q.now += seconds
            q.leave(ticket)
        for _ in range(4):
            q.enter("ana")
    assert slow.queue.retry_after() > 100
    assert fast.queue.retry_after() == 1


def test_no_slots_and_no_queue() -> None:
    q = Queue(slots=0, limit=0, per_user=0)
    with pytest.raises(QueueFullForUser):
        q.enter("ana")
    q.queue.resize(1, 0)
    assert q.enter("ana").running


def test_expiry_takes_those_whose_time_has_come_and_nobody_else() -> None:
    q = Queue(slots=1, timeout_s=10)
    q.enter("ana")
    early = q.enter("ana")
    q.now = 6
    late = q.enter("ana")
    q.now = 10
    assert q.queue.expire(q.now) == [early]
    assert q.queue.next_deadline() == late.deadline == 16
    assert q.queue.expire(16) == [late]
    assert q.queue.next_deadline() is None


def test_leaving_twice_frees_one_slot() -> None:
    q = Queue(slots=1)
    first = q.enter("ana")
    q.leave(first)
    q.leave(first)
    assert q.queue.running == 0
    assert q.enter("ana").running
    assert not q.enter("ana").running


@pytest.mark.parametrize("seed", range(300))
def test_random_histories_keep_the_promises(seed: int) -> None:
    """Slots are never exceeded, counts agree with the tickets, every ticket ends, nobody waits while another has two turns."""
    chance = random.Random(seed)
    slots, per_user, limit = chance.randint(1, 6), chance.randint(1, 8), chance.randint(1, 25)
    timeout = chance.choice([5.0, 50.0, 1e9])
    q = Queue(slots, limit, per_user, timeout)
    users = [f"u{index}" for index in range(chance.randint(1, 6))]
    alive: list[Ticket] = []
    passed = Passed()
    most_slots = slots
    for _ in range(150):
        q.now += chance.random() * 3
        before = len(q.granted)
        alive = [ticket for ticket in alive if ticket not in q.queue.expire(q.now)]
        match chance.randint(0, 9):
            case 0 | 1 | 2 | 3 | 4:
                try:
                    alive.append(q.enter(chance.choice(users)))
                except (Overloaded, QueueFullForUser) as error:
                    assert error.retry_after is not None and 1 <= error.retry_after <= 600  # noqa: PT017
            case 9:
                slots = chance.randint(0, 6)
                most_slots = max(most_slots, slots)
                q.queue.resize(slots, q.now)
            case _ if alive:
                ticket = alive.pop(chance.randrange(len(alive)))
                q.leave(ticket)
        alive = [ticket for ticket in alive if not ticket.left]
        running = [ticket for ticket in alive if ticket.running]
        waiting = [ticket for ticket in alive if ticket.granted_at is None]
        assert (len(running), len(waiting)) == (q.queue.running, q.queue.waiting)
        assert len(running) <= most_slots
        assert not (waiting and len(running) < slots), "a free slot while somebody waits"
        assert len(waiting) <= limit
        passed.check(q.granted[before:], waiting, running)
    q.queue.resize(max(slots, 1), q.now)
    while alive:
        q.now += 1
        for ticket in [each for each in alive if each.running]:
            q.leave(ticket)
        q.queue.expire(q.now)
        alive = [ticket for ticket in alive if not ticket.left]
    assert (q.queue.running, q.queue.waiting) == (0, 0)


class Passed:
    """Who has been served while a user waited with nothing running: each other user at most once, then it is its turn."""

    def __init__(self) -> None:
        self._by_user: dict[str, set[str]] = {}

    def check(self, granted: list[Ticket], waiting: list[Ticket], running: list[Ticket]) -> None:
        hungry = {ticket.user for ticket in waiting} - {ticket.user for ticket in running + granted}
        self._by_user = {user: self._by_user.get(user, set()) for user in hungry}
        for user, passed in self._by_user.items():
            for ticket in granted:
                assert ticket.user not in passed, f"{ticket.user} was served twice while {user} waited"
                passed.add(ticket.user)


def scheduler(clock: Clock, *, slots: int = 1, limit: int = 100, per_user: int = 100, timeout_s: float = 30) -> Scheduler:
    made = Scheduler(limit=limit, limit_per_user=per_user, timeout_s=timeout_s, clock=clock)
    if slots:
        made.open(slots)
    return made


async def test_waiting_coroutines_wake_in_fair_order() -> None:
    s = scheduler(Clock())
    held = await s.acquire("zoe")
    order: list[str] = []

    async def work(user: str) -> None:
        ticket = await s.acquire(user)
        order.append(user)
        s.release(ticket)

    async with asyncio.TaskGroup() as group:
        for user in ("ana", "ana", "ana", "bea"):
            group.create_task(work(user))
        await until(lambda: s.waiting == 4)
        s.release(held)
    assert order == ["ana", "bea", "ana", "ana"]
    assert s.idle


async def test_a_closed_scheduler_holds_everybody_without_deadline_until_it_opens() -> None:
    clock = Clock()
    s = scheduler(clock, slots=0, timeout_s=10)
    tasks = [asyncio.create_task(s.acquire(f"u{index}")) for index in range(3)]
    await until(lambda: s.waiting == 3)
    clock.advance(1000)
    s.expire()
    assert s.waiting == 3
    s.open(2)
    await until(lambda: s.running == 2)
    clock.advance(10)
    s.expire()
    with pytest.raises(Overloaded):
        await tasks[2]
    for task in tasks[:2]:
        s.release(await task)
    assert s.idle


async def test_who_passes_the_deadline_is_told_and_withdrawn() -> None:
    clock = Clock()
    s = scheduler(clock, timeout_s=5)
    held = await s.acquire("ana")
    waiting = asyncio.create_task(s.acquire("bea"))
    await until(lambda: s.waiting == 1)
    clock.advance(4.9)
    s.expire()
    assert s.waiting == 1
    clock.advance(0.2)
    s.expire()
    with pytest.raises(Overloaded) as caught:
        await waiting
    assert caught.value.retry_after is not None
    s.release(held)
    assert s.idle


async def test_the_timer_works_on_the_real_clock() -> None:
    s = Scheduler(limit=10, limit_per_user=10, timeout_s=0.02)
    s.open(1)
    held = await s.acquire("ana")
    with pytest.raises(Overloaded):
        await s.acquire("bea")
    with pytest.raises(Overloaded):
        await s.acquire("bea")
    s.release(held)
    assert s.idle


async def test_leaving_the_queue_frees_the_place_and_nobody_runs_for_it() -> None:
    s = scheduler(Clock())
    held = await s.acquire("ana")
    gone = asyncio.create_task(s.acquire("bea"))
    stays = asyncio.create_task(s.acquire("cleo"))
    await until(lambda: s.waiting == 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert s.waiting == 1
    s.release(held)
    s.release(await stays)
    assert s.idle


async def test_leaving_in_the_moment_of_the_grant_passes_the_slot_on() -> None:
    s = scheduler(Clock())
    held = await s.acquire("ana")
    gone = asyncio.create_task(s.acquire("bea"))
    stays = asyncio.create_task(s.acquire("cleo"))
    await until(lambda: s.waiting == 2)
    s.release(held)  # grants to bea, whose task has not run yet
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    s.release(await stays)
    assert s.idle


async def test_refusing_ends_all_who_wait_and_spares_who_runs() -> None:
    s = scheduler(Clock(), slots=2)
    held = [await s.acquire("ana"), await s.acquire("bea")]
    waiting = [asyncio.create_task(s.acquire("cleo")) for _ in range(5)]
    await until(lambda: s.waiting == 5)
    s.refuse(lambda: ShuttingDown("bye"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, ShuttingDown) for result in results)
    assert len({id(result) for result in results}) == 5
    assert (s.running, s.waiting) == (2, 0)
    for ticket in held:
        s.release(ticket)
    assert s.idle


async def test_pause_and_resume() -> None:
    s = scheduler(Clock(), slots=2)
    s.pause()
    waiting = asyncio.create_task(s.acquire("ana"))
    await until(lambda: s.waiting == 1)
    assert s.running == 0
    s.resume(2)
    s.release(await waiting)
    assert s.idle


@pytest.mark.parametrize("seed", range(20))
async def test_random_clients_all_end_and_slots_hold(seed: int) -> None:
    chance = random.Random(seed)
    clock = Clock()
    slots = chance.randint(1, 4)
    s = scheduler(clock, slots=slots, limit=20, per_user=8, timeout_s=40)
    most = 0

    async def client(user: str) -> str:
        nonlocal most
        for _ in range(chance.randint(0, 5)):
            await asyncio.sleep(0)
        try:
            ticket = await s.acquire(user)
        except (Overloaded, QueueFullForUser) as error:
            return error.slug
        most = max(most, s.running)
        try:
            for _ in range(chance.randint(0, 8)):
                await asyncio.sleep(0)
                clock.advance(chance.random())
                s.expire()
        finally:
            s.release(ticket)
        return "served"

    tasks = [asyncio.create_task(client(f"u{chance.randint(0, 4)}")) for _ in range(80)]
    for task in chance.sample(tasks, 15):
        await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= slots
    assert s.idle
    assert set(map(str, results)) <= {"served", "overloaded", "queue-full-for-user", ""}
    assert results.count("served") > 0
