"""Makes what was found for a call fit: recalled turns, facts, passages and the summary, each within its budget, all within the
model's context. What does not fit is counted in `Context.left_out`, never cut in silence; the caller's own messages stay.

Recalled turns have ``memory.history_tokens``, facts and passages together ``memory.context_tokens``. Where the context is
smaller than all of it with the prompt and the answer, first the older turns go, then the least relevant passages, then facts,
then the last turn; the summary is shortened last. It counts by the model's own tokenizer, and asks it as seldom as it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from app.core.settings import Memory
from app.core.types import Context, GenerationRequest, Message, Sampling
from app.models.showing import shown, with_context

Count = Callable[[GenerationRequest], Awaitable[int]]
Make = Callable[[int], GenerationRequest]
_SUMMARY_STEPS: Final = 3
"""A summary is halved so often before it goes."""
_ALONE: Final = Sampling()


class Ruler:
    """Tells whether a request has at most so many tokens.

    Args:
        count: tokens of a prompt.
        most: an upper bound of them, for nothing.
    """

    def __init__(self, count: Count, most: Callable[[GenerationRequest], int]) -> None:
        self._count = count
        self._most = most

    async def fits(self, request: GenerationRequest, tokens: int) -> bool:
        """Whether the prompt that ``request`` is shown as has at most ``tokens``. Raises as ``count`` does."""
        written = shown(request)
        return self._most(written) <= tokens or await self._count(written) <= tokens


async def fit_context(request: GenerationRequest, ruler: Ruler, memory: Memory, room: int | None) -> GenerationRequest:
    """``request`` with as much of its context and its recalled turns as there is room for.

    Args:
        ruler: how long prompts are.
        memory: the budgets.
        room: tokens that the whole prompt may have; None: nobody knows.
    """
    if request.context is None and not request.recalled:
        return request
    found = request
    request = await _within_history(request, ruler, memory.history_tokens)
    request = await _within_context(request, ruler, memory.context_tokens)
    if room is not None:
        cuts = _Cuts(request)
        request = await _first(cuts.steps, cuts.at, lambda each: ruler.fits(each, room))
    return _counted(request, found)


async def _within_history(request: GenerationRequest, ruler: Ruler, tokens: int) -> GenerationRequest:
    """Recalled turns within their budget; the summary, which stands for those before them, within one of the same size."""

    async def turns_fit(each: GenerationRequest) -> bool:
        begin = lead(each)
        recalled = each.messages[begin : begin + sum(each.recalled)]
        return not recalled or await ruler.fits(GenerationRequest(recalled, sampling=_ALONE), tokens)

    async def summary_fits(each: GenerationRequest) -> bool:
        summary = None if each.context is None else each.context.summary
        return not summary or await ruler.fits(GenerationRequest((Message("system", summary),), sampling=_ALONE), tokens)

    whole = request
    request = await _first(len(whole.recalled) + 1, lambda step: with_turns(whole, len(whole.recalled) - step), turns_fit)
    kept = request
    return await _first(_SUMMARY_STEPS + 2, lambda step: _with_summary(kept, step), summary_fits)


async def _within_context(request: GenerationRequest, ruler: Ruler, tokens: int) -> GenerationRequest:
    context = request.context
    if context is None or not (context.facts or context.passages):
        return request
    passages, facts = len(context.passages), len(context.facts)

    def at(step: int) -> GenerationRequest:
        return _with_found(request, passages=max(passages - step, 0), facts=facts - max(step - passages, 0))

    async def alone_fits(each: GenerationRequest) -> bool:
        assert each.context is not None  # noqa: S101  # `_with_found` keeps one
        if not (each.context.facts or each.context.passages):
            return True
        # As it will be written, with an empty question: what the frame around it takes is part of it.
        written = with_context((Message("user", ""),), dataclasses.replace(each.context, summary=None))
        return await ruler.fits(GenerationRequest(written, sampling=_ALONE), tokens)

    return await _first(passages + facts + 1, at, alone_fits)


class _Cuts:
    """What is left of a request after so many cuts, in the order of the module's docstring."""

    def __init__(self, request: GenerationRequest) -> None:
        context = request.context or Context()
        self._request = request
        self._turns = len(request.recalled)
        self._passages = len(context.passages)
        self._facts = len(context.facts)
        older = max(self._turns - 1, 0)
        self._ends = (
            older,
            older + self._passages,
            older + self._passages + self._facts,
            self._turns + self._passages + self._facts,
        )
        self.steps = self._ends[3] + 1 + (_SUMMARY_STEPS + 1 if context.summary else 0)

    def at(self, step: int) -> GenerationRequest:
        """The request after ``step`` cuts."""
        older, passages, facts, last = self._ends
        turns = self._turns - min(step, older) - max(min(step, last) - facts, 0)
        request = with_turns(self._request, turns)
        if request.context is None:
            return request
        request = _with_found(
            request,
            passages=self._passages - max(min(step, passages) - older, 0),
            facts=self._facts - max(min(step, facts) - passages, 0),
        )
        return _with_summary(request, max(step - last, 0))


async def _first(steps: int, make: Make, fits: Callable[[GenerationRequest], Awaitable[bool]]) -> GenerationRequest:
    """What ``make`` makes of the smallest step that ``fits``, else of the last one. Each step makes less than the one before,
    so it searches by halves."""
    if steps == 1 or await fits(make(0)):
        return make(0)
    low, high = 1, steps - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(make(middle)):
            high = middle
        else:
            low = middle + 1
    return make(high)


def lead(request: GenerationRequest) -> int:
    """How many system messages stand in front: what was recalled follows them."""
    messages = request.messages
    return next((at for at, each in enumerate(messages) if each.role not in ("system", "developer")), len(messages))


def with_turns(request: GenerationRequest, turns: int) -> GenerationRequest:
    """``request`` with its newest ``turns`` recalled turns; fewer where the first would answer a tool call that went."""
    if turns >= len(request.recalled):
        return request
    begin = lead(request)
    at = begin + sum(request.recalled[: len(request.recalled) - turns])
    while turns and request.messages[at].role == "tool":
        at += request.recalled[len(request.recalled) - turns]
        turns -= 1
    recalled = request.recalled[len(request.recalled) - turns :]
    messages = (*request.messages[:begin], *request.messages[at:])
    return dataclasses.replace(request, messages=messages, recalled=recalled)


def _with_found(request: GenerationRequest, *, passages: int, facts: int) -> GenerationRequest:
    context = request.context
    assert context is not None  # noqa: S101  # callers have looked
    if passages == len(context.passages) and facts == len(context.facts):
        return request
    context = dataclasses.replace(context, passages=context.passages[:passages], facts=context.facts[:facts])
    return dataclasses.replace(request, context=context)


def _with_summary(request: GenerationRequest, step: int) -> GenerationRequest:
    """``request`` with its summary halved ``step`` times, by whole words; none after `_SUMMARY_STEPS`."""
    context = request.context
    if context is None or not context.summary or step == 0:
        return request
    summary = None
    if step <= _SUMMARY_STEPS:
        summary = context.summary[: len(context.summary) >> step].rpartition(" ")[0]
    return dataclasses.replace(request, context=dataclasses.replace(context, summary=f"{summary} …" if summary else None))


def _counted(request: GenerationRequest, found: GenerationRequest) -> GenerationRequest:
    """``request`` with a context that says what of ``found`` is not shown."""
    had, has = found.context or Context(), request.context or Context()
    dropped = {
        "turns": len(found.recalled) - len(request.recalled),
        "facts": len(had.facts) - len(has.facts),
        "passages": len(had.passages) - len(has.passages),
        "summary": int(had.summary != has.summary),
    }
    left_out = dict(has.left_out)
    for kind, count in dropped.items():
        if count:
            left_out[kind] = left_out.get(kind, 0) + count
    context = dataclasses.replace(has, turns=len(request.recalled), left_out=left_out)
    return dataclasses.replace(request, context=context)
