"""A race of two targets for the first piece of one answer. The slower one is let go; nobody waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from app.core.errors import AprendizError
from app.core.types import Event
from app.models.targets import Attempt

Lead = tuple[Attempt, Sequence[Event]]


async def race(
    first: Attempt,
    *,
    after_s: float,
    second: Callable[[], Awaitable[Attempt]],
    spawn: Callable[[Coroutine[Any, Any, None]], object],
) -> tuple[Lead, AprendizError | None]:
    """The first events and who gave them, and the error of ``first`` where it had failed by then.

    Args:
        first: who is asked at once.
        after_s: seconds of silence after which the second is asked too.
        second: reserves it; may raise, then there is no race.
        spawn: runs what must outlive its caller.

    Raises:
        AprendizError: both failed; the error of ``first``.
    """
    runners = [asyncio.create_task(_ask(first))]
    winner: asyncio.Task[Lead] | None = None
    try:
        await asyncio.wait(runners, timeout=after_s)
        if not runners[0].done():
            runners.append(asyncio.create_task(_reserve_and_ask(second)))
        winner = await _first_to_answer(runners)
        return winner.result(), _error_of(runners[0])
    finally:
        losers = [each for each in runners if each is not winner]
        for each in losers:
            each.cancel()
        for each in losers:
            spawn(_let_go(each))  # before anything is awaited: a second cancellation must not leave one behind
        if winner is None:
            await asyncio.wait(losers)


async def _first_to_answer(runners: list[asyncio.Task[Lead]]) -> asyncio.Task[Lead]:
    pending = set(runners)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for each in runners:
            if each.done() and each.exception() is None:
                return each
    return runners[0]


async def _ask(attempt: Attempt) -> Lead:
    try:
        return attempt, await attempt.first()
    except BaseException as error:
        if isinstance(error, AprendizError):
            attempt.judge(error)
        await attempt.aclose()
        raise


async def _reserve_and_ask(reserve: Callable[[], Awaitable[Attempt]]) -> Lead:
    return await _ask(await reserve())


def _error_of(runner: asyncio.Task[Lead]) -> AprendizError | None:
    if not runner.done() or runner.cancelled():
        return None
    error = runner.exception()
    return error if isinstance(error, AprendizError) else None


async def _let_go(runner: asyncio.Task[Lead]) -> None:
    """Waits until a cancelled runner has ended: it closes what it began, unless it had answered just before."""
    await asyncio.wait([runner])
    if not runner.cancelled() and runner.exception() is None:
        await runner.result()[0].aclose()
