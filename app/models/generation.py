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
from app.core.records import FactRecord, PredictionRecord
from app.core.types import Answer, Context, Event, GenerationRequest, Sampling


@dataclass(frozen=True)
class Completed:
    """The end of a generation: the prediction, stored, and its answer.

    ``context``: what was found for it and shown; the prediction names its ids. ``proposed``: facts that its question states.
    """

    prediction: PredictionRecord
    answer: Answer
    context: Context | None = None
    proposed: tuple[FactRecord, ...] = ()


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

    @property
    def context(self) -> Context | None:
        """What was found for the call and is shown to the model."""
        return None

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
    ``raw``, ``door``, ``examples`` (ids of feedback) and ``context`` where the request has them.

    Of the context only ids and counts: whoever deletes a document or a fact leaves no copy of it here.
    """
    sampling = {name: value for name in _SAMPLING if (value := getattr(request.sampling, name)) not in (None, ())}
    stored: dict[str, Any] = {"messages": [message.to_wire() for message in request.messages], "sampling": sampling}
    if request.raw:
        stored["raw"] = True
    if request.door is not None:
        stored["door"] = request.door
    if request.examples:
        stored["examples"] = [example.id for example in request.examples]
    if request.context is not None:
        stored["context"] = _named(request.context, searched=request.documents is not None)
    return stored


def _named(context: Context, *, searched: bool) -> Mapping[str, Any]:
    """Ids and counts; ``passages`` is there wherever documents were asked for."""
    named: dict[str, Any] = {"turns": context.turns, "summary": context.summary is not None}
    for kind, ids in (
        ("facts", [fact.id for fact in context.facts]),
        ("passages", [passage.id for passage in context.passages]),
        ("documents", list(dict.fromkeys(passage.document_id for passage in context.passages))),
    ):
        if ids or (searched and kind == "passages"):
            named[kind] = ids
    if context.private:
        named["private"] = True
    return named | ({"left_out": dict(context.left_out)} if context.left_out else {})


_SAMPLING = tuple(field.name for field in dataclasses.fields(Sampling))
