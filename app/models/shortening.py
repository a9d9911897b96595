"""Drops the oldest messages of a conversation until it fits a model's context, for callers who asked for that.

System messages stay, and everything from the last question on; what is kept begins with a question, so that no answer of a tool
stands without its call. What does not fit even so is left for `app.models.fitting` to refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from app.core.types import GenerationRequest, Message

Count = Callable[[GenerationRequest], Awaitable[int]]


async def shorten(request: GenerationRequest, count: Count, *, most: int) -> GenerationRequest:
    """``request`` with as few messages dropped as leave a prompt of at most ``most`` tokens.

    Args:
        count: tokens of a request's prompt; asked a dozen times at most, for it searches by halves.
        most: tokens.
    """
    if await count(request) <= most:
        return request
    places = _beginnings(request.messages)
    low, high = (
        0,
        len(places),
    )  # dropping all before places[low] is too little or unknown; before places[high - 1], enough or all
    while low < high:
        middle = (low + high) // 2
        if await count(_without(request, places[middle])) <= most:
            high = middle
        else:
            low = middle + 1
    return _without(request, places[min(low, len(places) - 1)]) if places else request


def _beginnings(messages: Sequence[Message]) -> list[int]:
    """Where what is kept may begin: at each question but the first. Most vendors and templates want one there."""
    return [index for index, message in enumerate(messages) if message.role == "user"][1:]


def _without(request: GenerationRequest, place: int) -> GenerationRequest:
    """``request`` without what stands before ``place``, system messages excepted."""
    kept = tuple(
        message for index, message in enumerate(request.messages) if index >= place or message.role in ("system", "developer")
    )
    return dataclasses.replace(request, messages=kept)
