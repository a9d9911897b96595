"""Who gets the next slot of an engine: a bounded queue, fair between users, with deadlines.

`FairQueue` is the rule, as a plain state machine: it holds no task, no timer and no clock, so a simulation can drive it through
any history. `Scheduler` puts waiting coroutines, one timer and a clock around it. Neither knows what a model is.

The rule: a free slot goes to the user who has the fewest requests running; among those, to the one whose last turn is longest
ago. A user who comes new joins the end of the round, so neither a crowd of newcomers nor one user's heap can starve anybody.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.core.errors import AprendizError, Overloaded, QueueFullForUser

_FIRST_GUESS_S = 2.0
_SMOOTHING = 0.2
_LONGEST_RETRY_S = 600.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place: waiting while ``granted_at`` is None, holding a slot after it, nothing once ``left``."""

    user: str
    entered_at: float
    deadline: float | None = None
    granted_at: float | None = None
    left: bool = False

    @property
    def running(self) -> bool:
        """Whether it holds a slot now."""
        return self.granted_at is not None and not self.left

    @property
    def waited_s(self) -> float:
        """Seconds between entering and the slot; 0 while it waits."""
        return 0.0 if self.granted_at is None else self.granted_at - self.entered_at


@dataclass(slots=True)
class _Lane:
    """One user's requests. ``waiting`` is an ordered set; ``turn`` says who was served longest ago."""

    turn: int
    waiting: dict[Ticket, None]
    running: int = 0


class FairQueue:
    """The rule alone.

    Args:
        slots: requests that may run at once; 0 lets nobody through.
        limit: requests that may wait; one more raises Overloaded.
        limit_per_user: of these, per user; one more raises QueueFullForUser.
        timeout_s: longest wait; `expire` removes who has waited longer. Runs from `enter`, or from `start_deadlines`.
        on_grant: hears of each ticket that got its slot after waiting.
    """

    def __init__(
        self, *, slots: int, limit: int, limit_per_user: int, timeout_s: float, on_grant: Callable[[Ticket], None] | None = None
    ) -> None:
        self._slots = slots
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._timeout_s = timeout_s
        self._on_grant = on_grant
        self._deadlines = slots > 0
        self._lanes: dict[str, _Lane] = {}
        self._waiting: dict[Ticket, None] = {}
        self._running = 0
        self._turns = 0
        self._service_s = _FIRST_GUESS_S

    @property
    def slots(self) -> int:
        """Requests that may run at once."""
        return self._slots

    @property
    def running(self) -> int:
        """Tickets that hold a slot."""
        return self._running

    @property
    def waiting(self) -> int:
        """Tickets that wait for one."""
        return len(self._waiting)

    def enter(self, user: str, now: float) -> Ticket:
        """Takes a request in; with a free slot it runs at once.

        Raises:
            Overloaded: the queue is full.
            QueueFullForUser: this user's share of it is.
        """
        ticket = Ticket(user, now, deadline=now + self._timeout_s if self._deadlines else None)
        lane = self._lanes.get(user)
        if self._running < self._slots and not self._waiting:
            self._run(ticket, lane or self._new_lane(user), now)
            return ticket
        mine = 0 if lane is None else len(lane.waiting)
        if mine >= self._limit_per_user:
            detail = f"At most {self._limit_per_user} of your requests may wait at once; let some of them end first."
            raise QueueFullForUser(detail, retry_after=self.retry_after(mine))
        if len(self._waiting) >= self._limit:
            raise Overloaded("All slots are taken and the queue is full. Try again later.", retry_after=self.retry_after())
        lane = lane or self._new_lane(user)
        lane.waiting[ticket] = None
        self._waiting[ticket] = None
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """Ends a ticket: withdraws it from the queue, or frees its slot for the next. A second call does nothing."""
        if ticket.left:
            return
        ticket.left = True
        lane = self._lanes[ticket.user]
        if ticket.granted_at is None:
            self._forget_waiting(ticket)
        else:
            lane.running -= 1
            # To the end of the round again: else this user's next would pass those who came while this one ran.
            lane.turn = self._next_turn()
            self._running -= 1
            self._service_s += _SMOOTHING * (now - ticket.granted_at - self._service_s)
        if lane.running == 0 and not lane.waiting:
            del self._lanes[ticket.user]
        self._fill(now)

    def resize(self, slots: int, now: float) -> None:
        """Changes the number of slots. Fewer than are running takes none away; it only lets nobody new through."""
        self._slots = slots
        self._fill(now)

    def start_deadlines(self, now: float) -> None:
        """From now on waiting counts: those who wait already get the whole time from here."""
        self._deadlines = True
        for ticket in self._waiting:
            ticket.deadline = now + self._timeout_s

    def expire(self, now: float) -> list[Ticket]:
        """Removes and returns those whose deadline has come. Deadlines rise along the queue, so the front is enough."""
        late = []
        for ticket in self._waiting:
            if ticket.deadline is None or ticket.deadline > now:
                break
            late.append(ticket)
        for ticket in late:
            self.leave(ticket, now)
        return late

    def clear(self, now: float) -> list[Ticket]:
        """Removes and returns all who wait."""
        waiting = list(self._waiting)
        for ticket in waiting:
            # Marked and taken out one by one without a grant in between: nobody may slip through while the queue is cleared.
            ticket.left = True
            self._forget_waiting(ticket)
            lane = self._lanes[ticket.user]
            if lane.running == 0 and not lane.waiting:
                del self._lanes[ticket.user]
        return waiting

    def next_deadline(self) -> float | None:
        """When `expire` has work to do next, or None."""
        return next((ticket.deadline for ticket in self._waiting), None)

    def retry_after(self, ahead: int | None = None) -> float:
        """Whole seconds until a slot is likely free for one more, from recent service times; ``ahead``: requests before it."""
        rounds = ((self.waiting if ahead is None else ahead) + 1) / max(self._slots, 1)
        return float(math.ceil(min(max(rounds * self._service_s, 1.0), _LONGEST_RETRY_S)))

    def _fill(self, now: float) -> None:
        while self._running < self._slots and self._waiting:
            lane = min((each for each in self._lanes.values() if each.waiting), key=lambda each: (each.running, each.turn))
            ticket = next(iter(lane.waiting))
            self._forget_waiting(ticket)
            self._run(ticket, lane, now)
            if self._on_grant is not None:
                self._on_grant(ticket)

    def _run(self, ticket: Ticket, lane: _Lane, now: float) -> None:
        ticket.granted_at = now
        lane.running += 1
        lane.turn = self._next_turn()
        self._running += 1

    def _forget_waiting(self, ticket: Ticket) -> None:
        del self._waiting[ticket]
        del self._lanes[ticket.user].waiting[ticket]

    def _new_lane(self, user: str) -> _Lane:
        lane = self._lanes[user] = _Lane(self._next_turn(), {})
        return lane

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns


class Scheduler:
    """Coroutines that wait for a slot of one engine. Starts closed: `open` lets them through once the engine is ready.

    Args:
        limit, limit_per_user, timeout_s: as for `FairQueue`.
        clock: seconds, monotonic.
        on_change: called after each change of who waits and who runs.
    """

    def __init__(
        self,
        *,
        limit: int,
        limit_per_user: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._queue = FairQueue(
            slots=0, limit=limit, limit_per_user=limit_per_user, timeout_s=timeout_s, on_grant=self._granted
        )
        self._timeout_s = timeout_s
        self._clock = clock
        self._on_change = on_change
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def slots(self) -> int:
        """Requests that may run at once; 0 while the engine is not ready."""
        return self._queue.slots

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._queue.running

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return self._queue.waiting

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody runs."""
        return self._queue.running == 0 and self._queue.waiting == 0

    async def acquire(self, user: str) -> Ticket:
        """Waits for a slot; `release` gives it back. Leaving (cancellation) withdraws, before any engine sees the request.

        The place in the queue is taken before the first suspension, so whoever calls this in one step with its choice of
        engine cannot be overtaken by a switch.

        Raises:
            Overloaded: the queue is full, or the wait passed its deadline.
            QueueFullForUser: too many of this user's requests wait.
            AprendizError: what `refuse` was given.
        """
        ticket = self._queue.enter(user, self._clock())
        self._changed()
        if ticket.running:
            return ticket
        future = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._arm()
        try:
            await future
        except BaseException:
            # Refused, or the caller left: perhaps just after the slot was granted, which `leave` gives to the next.
            self.release(ticket)
            raise
        finally:
            self._waiters.pop(ticket, None)
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Ends a ticket, whatever its state. A second call does nothing."""
        if not ticket.left:
            self._queue.leave(ticket, self._clock())
            self._changed()

    def open(self, slots: int) -> None:
        """The engine is ready for ``slots`` requests at once; deadlines of those who wait start now."""
        now = self._clock()
        self._queue.start_deadlines(now)
        self._queue.resize(slots, now)
        self._arm()
        self._changed()

    def pause(self) -> None:
        """Lets nobody through until `resume`; deadlines run on."""
        self._queue.resize(0, self._clock())
        self._changed()

    def resume(self, slots: int) -> None:
        """Lets requests through again."""
        self._queue.resize(slots, self._clock())
        self._changed()

    def refuse(self, error: Callable[[], AprendizError]) -> None:
        """Ends all who wait with a fresh ``error`` each."""
        for ticket in self._queue.clear(self._clock()):
            self._fail(ticket, error())
        self._changed()

    def expire(self) -> None:
        """Ends those whose deadline has come; the timer calls this."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for ticket in self._queue.expire(self._clock()):
            detail = f"No slot became free within {self._timeout_s:g} seconds. Try again later."
            self._fail(ticket, Overloaded(detail, retry_after=self._queue.retry_after()))
        self._arm()
        self._changed()

    def _granted(self, ticket: Ticket) -> None:
        future = self._waiters.get(ticket)
        if future is not None and not future.done():
            future.set_result(None)

    def _fail(self, ticket: Ticket, error: AprendizError) -> None:
        future = self._waiters.get(ticket)
        if future is not None and not future.done():
            future.set_exception(error)

    def _arm(self) -> None:
        deadline = self._queue.next_deadline()
        if deadline is not None and self._timer is None:
            # It may fire early (loops round, and whoever it was set for may have left); `expire` then finds nothing and arms
            # it again.
            delay = max(deadline - self._clock(), 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self.expire)

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()
