"""Asks both versions, on the served stack, and turns what they say into figures. It decides nothing and stores nothing.

Both versions get each question at the same time, so that whatever else the machine does meets both alike. At most as many
questions run as the engine has slots; leaving (cancelled, an error) ends all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from app.core.errors import ContextOverflow, EngineUnavailable, InvalidRequest, UpstreamError
from app.core.types import Answer, GenerationRequest, Message, Sampling, VersionInfo
from app.training.gate.evidence import Correction, Evidence, Guard, Guards, Pair, Unmeasured, Vote
from app.training.gate.guards import GuardPrompt, GuardSet, Probe, Said, Wanted, of_answers, of_memory, of_tools
from app.training.gate.heldout import Row
from app.training.gate.parity import Item
from app.training.gate.similarity import similarity
from app.training.gate.statistics import mean

GUARD_TOKENS: Final = 48
TOKEN_BUDGET: Final = 60_000
"""Tokens that all held-out answers of both versions together may have."""
_TRIES: Final = 3
_AGAIN_S: Final = 1.0
_LEAST_TOKENS: Final = 32
_MOST_TOKENS: Final = 256
_CHARACTERS_PER_TOKEN: Final = 2.5
_PARITY_ROWS: Final = 6

NO_SCORES: Final = "This provider gives no log-probabilities, so this cannot be measured, and what is not measured cannot pass."

T = TypeVar("T")
Progress = Callable[[int, int], None]


class Trial(Protocol):
    """What is used of `app.models.trial.Trial`."""

    version: VersionInfo
    capabilities: Any

    async def answer(self, request: GenerationRequest) -> Answer: ...
    async def score(self, request: GenerationRequest, completion: str) -> Any: ...
    async def prompt(self, request: GenerationRequest) -> str: ...


@dataclass(frozen=True, slots=True)
class Sides:
    """The two versions that are compared."""

    old: Trial
    new: Trial

    @property
    def scores(self) -> bool:
        """Whether log-probabilities can be had of both."""
        return bool(self.old.capabilities.scores and self.new.capabilities.scores)

    @property
    def tools(self) -> bool:
        return bool(self.old.capabilities.tools and self.new.capabilities.tools)

    @property
    def slots(self) -> int:
        return max(1, min(8, int(self.new.capabilities.slots) // 2))


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out question with both answers, for people to look at: it holds users' words."""

    question: str
    wanted: str
    old: str
    new: str


@dataclass(slots=True)
class Collected:
    """All figures of one judgement. ``margins``: of corrections over what they corrected, as in `Pair`: told, not judged."""

    evidence: Evidence
    guards: Guards
    samples: list[Sample] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    skipped: int = 0
    """Held-out rows that the models could not take, or that fell to the budget of tokens."""


class Asking:
    """A bounded number of questions at once, counted for the progress."""

    def __init__(self, sides: Sides, progress: Progress | None = None) -> None:
        self._sides = sides
        self._progress = progress
        self._free = asyncio.Semaphore(sides.slots)
        self._done = self._all = 0

    def expect(self, questions: int) -> None:
        """So many more questions are to come."""
        self._all += questions

    async def each(self, work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Runs all; the first error ends the others."""
        tasks = [asyncio.create_task(self._one(each)) for each in work]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, work: Callable[[], Awaitable[T]]) -> T:
        async with self._free:
            found = await work()
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._all)
        return found

    async def answers(self, request: GenerationRequest) -> tuple[Said, Said]:
        """Both versions' answers."""
        old, new = await _both(_said(self._sides.old, request), _said(self._sides.new, request))
        return old, new

    async def shift(self, request: GenerationRequest, completion: str) -> float:
        """Log-ratio of a text, candidate over current, in nats per token."""
        old, new = await self.scores(request, completion)
        return new - old

    async def scores(self, request: GenerationRequest, completion: str) -> tuple[float, float]:
        """Nats per token of a text under the current version and the candidate."""
        old, new = await self.tokens(request, completion)
        return mean(old), mean(new)

    async def tokens(self, request: GenerationRequest, completion: str) -> tuple[Sequence[float], Sequence[float]]:
        """Log-probabilities of a text's tokens under the current version and the candidate."""
        return await _both(_score(self._sides.old, request, completion), _score(self._sides.new, request, completion))


async def _both(old: Coroutine[Any, Any, T], new: Coroutine[Any, Any, T]) -> tuple[T, T]:
    tasks = (asyncio.create_task(old), asyncio.create_task(new))
    try:
        return await tasks[0], await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _said(trial: Trial, request: GenerationRequest) -> Said:
    async def ask() -> Said:
        begun = time.monotonic()
        answer = await trial.answer(request)
        return Said(answer, time.monotonic() - begun)

    return await _stubborn(ask)


async def _score(trial: Trial, request: GenerationRequest, completion: str) -> Sequence[float]:
    async def ask() -> Sequence[float]:
        return tuple(map(float, (await trial.score(request, completion)).tokens))

    return await _stubborn(ask)


async def _stubborn(ask: Callable[[], Awaitable[T]]) -> T:
    """Asks again where an engine failed. Raises EngineUnavailable where it goes on failing: the judgement can be repeated."""
    for left in reversed(range(_TRIES)):
        try:
            return await ask()
        except UpstreamError as error:
            if not left:
                raise EngineUnavailable(f"The engine failed on a question of the gate: {error.detail}") from error
            await asyncio.sleep(_AGAIN_S)
    raise AssertionError("unreachable")


# --- held-out feedback


async def held_out(asking: Asking, rows: Sequence[Row], can_score: bool) -> Collected:
    """Evidence of these rows. Without scores preferences and votes give none, and the verdict says so."""
    rows, cut = _within_budget([row for row in rows if can_score or row.kind == "sft"])
    asking.expect(len(rows))
    found = await asking.each([partial(_take, asking, row, can_score) for row in rows])
    taken = [each for each in found if each is not None]
    return Collected(
        Evidence(
            tuple(each.row for each in taken if isinstance(each.row, Correction)),
            tuple(each.row for each in taken if isinstance(each.row, Pair)),
            tuple(each.row for each in taken if isinstance(each.row, Vote)),
        ),
        Guards(),
        [each.sample for each in taken if each.sample is not None],
        [each.margin for each in taken if each.margin is not None],
        cut + len(found) - len(taken),
    )


def _within_budget(rows: Sequence[Row]) -> tuple[list[Row], int]:
    kept, spent = [], 0
    for row in rows:
        spent += 2 * _room(row) if row.kind == "sft" else 0
        if spent <= TOKEN_BUDGET:
            kept.append(row)
    return kept, len(rows) - len(kept)


def _room(row: Row) -> int:
    """Tokens that an answer may have: half as many again as the correction, about."""
    return int(min(_MOST_TOKENS, max(_LEAST_TOKENS, 1.5 * len(row.good) / _CHARACTERS_PER_TOKEN)))


@dataclass(frozen=True, slots=True)
class _Taken:
    row: Correction | Pair | Vote
    sample: Sample | None = None
    margin: float | None = None


async def _take(asking: Asking, row: Row, can_score: bool) -> _Taken | None:
    """The figures of one row, or None where the model cannot take it."""
    try:
        if row.kind == "sft":
            return await _correction(asking, row, can_score)
        request = _request(row.messages, tools=row.tools)
        if row.kind == "kto":
            return _Taken(Vote(row.group, row.rater, row.up, await asking.shift(request, row.good)))
        return _Taken(Pair(row.group, row.rater, await _margin(asking, request, row)))
    except (InvalidRequest, ContextOverflow):
        return None


async def _correction(asking: Asking, row: Row, can_score: bool) -> _Taken:
    request = _request(row.messages, _room(row), row.tools)
    old, new = await asking.answers(request)
    likeness = await asyncio.to_thread(lambda: (similarity(old.text, row.good), similarity(new.text, row.good)))
    margin = await _margin(asking, request, row) if can_score and row.bad else None
    return _Taken(Correction(row.group, row.rater, *likeness), Sample(row.question, row.good, old.text, new.text), margin)


async def _margin(asking: Asking, request: GenerationRequest, row: Row) -> float:
    return await asking.shift(request, row.good) - await asking.shift(request, row.bad or "")


def _request(
    messages: tuple[Message, ...], max_tokens: int | None = None, tools: Sequence[Any] = (), choice: str | None = None
) -> GenerationRequest:
    """Greedy, whole, never from the cache."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, seed=0, tools=tuple(tools), tool_choice=choice)
    return GenerationRequest(messages, sampling=sampling, cache="off", whole=True, request_id="gate")


# --- guards


async def guards(asking: Asking, sides: Sides, frozen: GuardSet, wanted: Sequence[Wanted]) -> Guards:
    """All guards that are read off answers and scores."""
    prompts = [each for each in frozen.prompts if each.kind != "tool" or sides.tools]
    asking.expect(len(prompts) + (len(frozen.texts) if sides.scores else 0))
    probes = await asking.each([partial(_probe, asking, each, frozen) for each in prompts])
    found = await asyncio.to_thread(of_answers, probes, wanted)
    memory: Guard = Unmeasured("forgetting", NO_SCORES, passes=False)
    if sides.scores:
        pairs = await asking.each(
            [partial(asking.scores, _request((Message("user", each.prompt),)), each.completion) for each in frozen.texts]
        )
        memory = of_memory([old for old, _ in pairs], [new for _, new in pairs])
    return Guards((memory, *found, of_tools(probes, sides.tools)))


async def parity_items(asking: Asking, rows: Sequence[Row], frozen: GuardSet) -> list[Item]:
    """Texts for `app.training.gate.parity`: some frozen ones, and some that the adapter should have changed most."""
    asked = [(_request((Message("user", each.prompt),)), each.completion) for each in frozen.texts[::2]]
    asked += [(_request(row.messages, tools=row.tools), row.good) for row in rows[:_PARITY_ROWS]]
    asking.expect(len(asked))
    found = await asking.each([partial(_item, asking, *each) for each in asked])
    return [each for each in found if each is not None]


async def _item(asking: Asking, request: GenerationRequest, completion: str) -> Item | None:
    try:
        return Item(request, completion, *await asking.tokens(request, completion))
    except (InvalidRequest, ContextOverflow):
        return None


async def _probe(asking: Asking, asked: GuardPrompt, frozen: GuardSet) -> Probe:
    tools = frozen.tools if asked.kind == "tool" else ()
    request = _request((Message("user", asked.prompt),), GUARD_TOKENS, tools, "auto" if tools else None)
    return Probe(asked, *await asking.answers(request))
