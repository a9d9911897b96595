"""Rate limits: how many calls of a kind a user, key or address may make in a window of any position.

Counts calls; says nothing about tokens, money or concurrency. The storage is one of `limits.aio`, so that replicas can share
one later; the default, `MemoryWindows`, is for one process and counts by the monotonic clock, so that a clock that is set
neither forgets a limit nor prolongs it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from limits import RateLimitItem, RateLimitItemPerDay, parse

from app.core.errors import TooManyRequests, Unauthenticated
from app.core.settings import RateLimits
from app.security.address import address_subject

LimitName = Literal["predict", "predict_address", "feedback", "login", "login_address", "api"]

_Item = LimitName | Literal["login_day"]

_PARTS = 20
_MAX_KEYS = 200_000
_ADDRESS_FACTOR = 5
_LOGIN_DAY_FACTOR = 10


@dataclass(frozen=True, slots=True)
class RateState:
    """Where a caller stands: ``remaining`` of ``limit`` calls, the first to come free in ``reset_s`` seconds."""

    name: str
    limit: int
    remaining: int
    reset_s: float
    window_s: int

    def headers(self) -> list[tuple[str, str]]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers). They name no user."""
        return [
            ("RateLimit-Policy", f'"{self.name}";q={self.limit};w={self.window_s}'),
            ("RateLimit", f'"{self.name}";r={self.remaining};t={math.ceil(self.reset_s)}'),
        ]


class RateLimiter:
    """All limits of the service.

    Args:
        storage: counts; must support moving windows. In memory unless told.
        clock: the clock that ``storage`` counts by: ``time.time`` for Redis.
    """

    def __init__(
        self, settings: RateLimits, *, storage: WindowStorage | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._enabled = settings.enabled
        self._clock = clock
        self._windows: WindowStorage = storage or MemoryWindows(clock=clock)
        login = parse(settings.login)
        items: dict[_Item, RateLimitItem] = {
            "predict": parse(settings.predict),
            "predict_address": _for_address(parse(settings.predict)),
            "feedback": parse(settings.feedback),
            "login_day": RateLimitItemPerDay(login.amount * _LOGIN_DAY_FACTOR),
            "login": login,
            "login_address": _for_address(login),
            "api": parse(settings.api),
        }
        self._bounds = {limit: (item.amount, item.get_expiry()) for limit, item in items.items()}
        self._trying: Counter[tuple[_Item, str]] = Counter()

    async def check(self, limit: LimitName, *subjects: str) -> RateState:
        """Counts one call for each of ``subjects`` (user id, key id, address), each of which has a count of its own.

        Addresses are counted per IPv4 address or IPv6 /64.

        Returns:
            The state of the subject with the least left.

        Raises:
            TooManyRequests: one of them has used up the limit; ``retry_after`` says when the next call is free.
        """
        if not self._enabled or not subjects:
            amount, expiry = self._bounds[limit]
            return RateState(limit, amount, amount, 0, expiry)
        if isinstance(self._windows, MemoryWindows):
            return self._check_here(self._windows, limit, subjects)
        states = []
        for subject in map(address_subject, subjects):
            if not await self._hit(limit, subject):
                raise _too_many(limit, await self._state(limit, subject))
            states.append(await self._state(limit, subject))
        return min(states, key=lambda state: state.remaining)

    def _check_here(self, windows: MemoryWindows, limit: LimitName, subjects: tuple[str, ...]) -> RateState:
        """`check` without an await between its parts: every call of every user passes here."""
        amount, expiry = self._bounds[limit]
        least, opens = amount, 0.0
        for subject in subjects:
            key = f"{limit}/{address_subject(subject)}"
            fits, used, opens_at = windows.take(key, amount, expiry)
            if not fits:
                raise _too_many(limit, RateState(limit, amount, 0, max(0.0, opens_at - self._clock()), expiry))
            if amount - used <= least:
                least, opens = amount - used, opens_at
        return RateState(limit, amount, least, max(0.0, opens - self._clock()), expiry)

    @asynccontextmanager
    async def login_attempt(self, account: str, address: str) -> AsyncIterator[None]:
        """Surrounds one try of a password. A try that ends in Unauthenticated, or is given up, counts as failed; others do not.

        Failures count per account *and* address, so that nobody can lock another out from elsewhere, and per address over
        all accounts. Ten times the limit is also the most of a day, so that nobody guesses on slowly for ever. Tries under way
        count too, so that many at once do not slip through together.

        Raises:
            TooManyRequests: too many failures, before anything is tried.
        """
        if not self._enabled:
            yield
            return
        place = address_subject(address)
        counted: list[tuple[_Item, str]] = [
            ("login", f"{account}@{place}"),
            ("login_day", f"{account}@{place}"),
            ("login_address", place),
        ]
        self._trying.update(counted)
        try:
            for limit, subject in counted:
                state = await self._state(limit, subject)
                if state.remaining < self._trying[limit, subject]:
                    raise _too_many(limit, state)
            try:
                yield
            except (Unauthenticated, asyncio.CancelledError):
                for limit, subject in counted:
                    await self._hit(limit, subject)
                raise
        finally:
            for key in counted:
                self._trying[key] -= 1
                if not self._trying[key]:
                    del self._trying[key]

    async def _hit(self, limit: _Item, subject: str) -> bool:
        amount, expiry = self._bounds[limit]
        return await self._windows.acquire_entry(f"{limit}/{subject}", amount, expiry)

    async def _state(self, limit: _Item, subject: str) -> RateState:
        amount, window = self._bounds[limit]
        start, used = await self._windows.get_moving_window(f"{limit}/{subject}", amount, window)
        reset = max(0.0, start + window - self._clock()) if used else 0.0
        return RateState(limit, amount, max(0, amount - used), reset, window)


def _for_address(item: RateLimitItem) -> RateLimitItem:
    """The limit of an address, behind which many people may sit."""
    return type(item)(item.amount * _ADDRESS_FACTOR, item.multiples)


def _too_many(limit: _Item, state: RateState) -> TooManyRequests:
    wait = max(1, math.ceil(state.reset_s))
    what = "failed logins" if limit.startswith("login") else "calls"
    error = TooManyRequests(f"Too many {what}: {state.limit} in {state.window_s} s. Wait {wait} s.", retry_after=wait)
    error.limit = state.limit
    return error


@dataclass(slots=True)
class _Window:
    """Calls per part of the window, oldest first."""

    parts: deque[list[int]]
    total: int = 0


class MemoryWindows:
    """Moving windows in memory, in the form of a `limits.aio` storage (``acquire_entry``, ``get_moving_window``).

    `limits`' own memory storage keeps a time stamp per call and starts a thread hop per key with every call. This one counts in
    twenty parts per window: constant memory and time per key. A part counts until all of it has left the window, so no window
    of any position ever holds more than the limit; a call comes free up to one twentieth late.

    Keys without calls in their window are dropped; beyond 200,000 keys those unused the longest go.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_keys: int = _MAX_KEYS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._by_expiry: dict[int, OrderedDict[str, _Window]] = {}

    def __len__(self) -> int:
        return sum(len(windows) for windows in self._by_expiry.values())

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Counts ``amount`` calls of ``key`` if they fit into ``limit`` per ``expiry`` seconds, and says whether."""
        return self.take(key, limit, expiry, amount)[0]

    def take(self, key: str, limit: int, expiry: int, amount: int = 1) -> tuple[bool, int, float]:
        """As `acquire_entry`; returns also how many calls count now, and when the oldest of them come free."""
        windows = self._by_expiry.setdefault(expiry, OrderedDict())
        now = int(self._clock() / expiry * _PARTS)
        window = windows.get(key)
        if window is None:
            self._make_room(windows, now)
            window = windows[key] = _Window(deque())
        else:
            windows.move_to_end(key)
            _forget(window, now)
        if window.total + amount > limit:
            return False, window.total, self._opens(window, expiry)
        if window.parts and window.parts[-1][0] == now:
            window.parts[-1][1] += amount
        else:
            window.parts.append([now, amount])
        window.total += amount
        return True, window.total, self._opens(window, expiry)

    def _opens(self, window: _Window, expiry: int) -> float:
        oldest = window.parts[0][0] if window.parts else int(self._clock() / expiry * _PARTS)
        return (oldest + 1) * expiry / _PARTS + expiry

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """``(start, used)``: the oldest counted calls come free at ``start + expiry``."""
        windows = self._by_expiry.get(expiry)
        window = windows.get(key) if windows else None
        now = self._clock()
        if window is None:
            return now, 0
        _forget(window, int(now / expiry * _PARTS))
        if not window.parts:
            return now, 0
        return (window.parts[0][0] + 1) * expiry / _PARTS, window.total

    def _make_room(self, windows: OrderedDict[str, _Window], now: int) -> None:
        """Drops the keys whose newest call has left the window; they stand in front, in order of last use."""
        while windows:
            key, window = next(iter(windows.items()))
            fresh = window.parts and window.parts[-1][0] >= now - _PARTS
            if fresh and len(windows) < self._max_keys:
                return
            del windows[key]


def _forget(window: _Window, now: int) -> None:
    """Drops the parts that have wholly left the window. ``now``: number of the current part."""
    while window.parts and window.parts[0][0] < now - _PARTS:
        window.total -= window.parts.popleft()[1]


class WindowStorage(Protocol):
    """A `limits.aio` storage with moving windows."""

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool: ...

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]: ...
