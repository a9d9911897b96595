"""What a caller holds while its answer comes, be it from a model (`app.models.live`) or from the cache (`app.models.replay`).

Only the contract stands here, and what both need to keep it.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from app.core.errors import UpstreamError
from app.core.records import PredictionRecord
from app.core.types import Answer, Event, GenerationRequest, Sampling


@dataclass(frozen=True)
class Completed:
    """The end of a generation: the prediction, stored, and its answer."""

    prediction: PredictionRecord
    answer: Answer


class Generation(abc.ABC):
    """An answer on its way to its caller. Use as ``async with generation:`` around `batches` or `events`.

    One consumer, once.
    """

    id: str
    conversation_id: str | None
    cached: bool
    """Whether the answer was given before."""

    @property
    @abc.abstractmethod
    def model(self) -> str:
        """The model that answers, as ``provider/name``."""

    @property
    @abc.abstractmethod
    def version(self) -> str:
        """The id of its version."""

    @property
    @abc.abstractmethod
    def fallback(self) -> str | None:
        """Slug of the error for which the first target does not answer, or None."""

    @property
    def examples(self) -> int:
        """How many approved corrections the model is shown."""
        return 0

    async def __aenter__(self) -> Self:
        return self

    @abc.abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @abc.abstractmethod
    def batches(self) -> AsyncGenerator[Sequence[Event] | Completed, None]:
        """The events as they come together, then exactly one `Completed`, after the prediction is stored.

        Raises:
            UpstreamTimeout: not finished by the deadline.
            ShuttingDown: the service ended first.
            StorageUnavailable, StorageFull: answered, and not stored: there is no such prediction.
            AprendizError: the provider's; of the last target, where several were asked.
        """

    async def events(self) -> AsyncGenerator[Event | Completed, None]:
        """`batches`, event by event. Raises as it does."""
        async with contextlib.aclosing(self.batches()) as batches:
            async for batch in batches:
                if isinstance(batch, Completed):
                    yield batch
                    continue
                for event in batch:
                    yield event

    async def completed(self) -> Completed:
        """The whole answer: `batches` to their end. Raises as they do."""
        async with contextlib.aclosing(self.batches()) as batches:
            async for batch in batches:
                if isinstance(batch, Completed):
                    return batch
        raise UpstreamError("The answer was cut off before its end. Try again.")


def to_input(request: GenerationRequest) -> Mapping[str, Any]:
    """The structured input as it is stored: ``{"messages": [...], "sampling": {...}}``; sampling without what is not set, and
    ``raw``, ``door`` and ``examples`` (ids of feedback) where the request has them."""
    sampling = {name: value for name in _SAMPLING if (value := getattr(request.sampling, name)) not in (None, ())}
    stored: dict[str, Any] = {"messages": [message.to_wire() for message in request.messages], "sampling": sampling}
    if request.raw:
        stored["raw"] = True
    if request.door is not None:
        stored["door"] = request.door
    if request.examples:
        stored["examples"] = [example.id for example in request.examples]
    return stored


_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
