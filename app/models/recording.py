"""A whole answer as it came, to be given again: the events, adjacent pieces joined, and what they are worth in bytes.

It holds no key and no age, and knows no cache: `app.models.cache` does.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from app.core.types import (
    Context,
    Event,
    Example,
    Finished,
    Message,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
)

PIECE: Final = 2048
"""Characters that a replay sends in one piece, where they came in smaller ones."""
_LOGPROB_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer came from.

    ``head``: messages that this service put in front of the caller's. ``sampling``: as the model got it. ``fallback``: as in
    `app.core.records.PredictionRecord`. ``examples``, ``context``: that the model was shown.
    """

    provider: str
    model: str
    version: str
    head: tuple[Message, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    fallback: str | None = None
    examples: tuple[Example, ...] = ()
    context: Context | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole answer, to be given again. ``events``: in their order, adjacent text joined; the last is `Finished`."""

    origin: Origin
    events: tuple[Event, ...]

    @property
    def finished(self) -> Finished:
        """The closing event."""
        last = self.events[-1]
        assert isinstance(last, Finished)  # noqa: S101  # `Recorder.recording` makes no other
        return last


class Recorder:
    """Takes the events of an answer while they come; no more than ``limit`` bytes of them, roughly."""

    def __init__(self, limit: int) -> None:
        self._events: list[Event] = []
        self._room = limit

    def note(self, events: Sequence[Event]) -> None:
        """Takes the next events. What is too large is dropped, whole."""
        for event in events:
            if self._room <= 0:
                self._events.clear()
                return
            self._room -= _weight(event)
            joined = _joined(self._events[-1], event) if self._events else None
            if joined is None:
                self._events.append(event)
            else:
                self._events[-1] = joined

    def recording(self, origin: Origin) -> Recording | None:
        """What was taken, or None where it was too large or has no end."""
        if self._room <= 0 or not self._events or not isinstance(self._events[-1], Finished):
            return None
        return Recording(origin, tuple(self._events))


def size_of(recording: Recording) -> int:
    """Bytes that a recording takes, or somewhat more: what its parts share with others counts in full."""
    return sum(sys.getsizeof(part) for part in _parts(recording))


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _parts(getattr(value, each.name))
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _parts(getattr(value, name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _parts(key)
            yield from _parts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _parts(each)


def _joined(last: Event, event: Event) -> Event | None:
    """The two as one piece, where that says the same and does not grow too long."""
    match last, event:
        case TextDelta(text), TextDelta(more) if len(text) + len(more) <= PIECE:
            return TextDelta(text + more)
        case ReasoningDelta(text, None, None), ReasoningDelta(more, None, None) if len(text) + len(more) <= PIECE:
            return ReasoningDelta(text + more)
        case ToolCallDelta(), ToolCallDelta(index, None, None, more) if index == last.index:
            return (
                ToolCallDelta(last.index, last.id, last.name, last.arguments + more) if len(last.arguments) <= PIECE else None
            )
    return None


def _weight(event: Event) -> int:
    """Bytes of an event, roughly, for a bound that holds while it comes; `size_of` is exact."""
    match event:
        case TextDelta(text) | ReasoningDelta(text):
            return len(text)
        case ToolCallDelta():
            return len(event.arguments)
        case TokenLogprobs(content):
            return len(content) * _LOGPROB_BYTES
        case Finished():
            return 0
