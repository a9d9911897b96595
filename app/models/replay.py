"""An answer that was given before, given again: a prediction of its own, at no price. It needs no engine and holds no slot."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from app.core.errors import AprendizError
from app.core.metrics import Metrics
from app.core.records import PredictionRecord
from app.core.text import storable
from app.core.types import Answer, Context, Event, Folder, GenerationRequest, Principal
from app.models.generation import Completed, Generation, to_input
from app.models.recording import Recording
from app.models.stores import PredictionStore


@dataclass(frozen=True, slots=True)
class Again:
    """One call that gets a recording. Times on ``clock``; ``asked``: the alias or route that it asked for, or None."""

    id: str
    request: GenerationRequest
    principal: Principal
    asked: str | None
    called_at: float
    created_at: datetime
    store: PredictionStore
    metrics: Metrics
    clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Replay(Generation):
    """A recording on its way to one more caller. Left before it was begun, it leaves nothing behind."""

    cached = True

    def __init__(self, again: Again, recording: Recording) -> None:
        self.id = again.id
        self.conversation_id = again.request.conversation_id
        self._again = again
        self._origin = recording.origin
        self._events = recording.events
        self._found_s = again.clock() - again.called_at

    @property
    def model(self) -> str:
        """As `Generation.model`."""
        return f"{self._origin.provider}/{self._origin.model}"

    @property
    def version(self) -> str:
        """As `Generation.version`."""
        return self._origin.version

    @property
    def fallback(self) -> str | None:
        """As `Generation.fallback`."""
        return self._origin.fallback

    @property
    def examples(self) -> int:
        """As `Generation.examples`."""
        return len(self._origin.examples)

    @property
    def context(self) -> Context | None:
        """As `Generation.context`."""
        return self._origin.context

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass  # it holds nothing

    async def batches(self) -> AsyncGenerator[Sequence[Event] | Completed, None]:
        """As `Generation.batches`: stored first, then everything at once.

        Raises StorageUnavailable, StorageFull, Conflict: there is no such prediction.
        """
        folder = Folder()
        for event in self._events:
            folder.add(event)
        answer = folder.answer()
        record = self._to_record(answer)
        await self._keep(record)
        yield self._events
        yield Completed(record, answer, self.context)

    async def _keep(self, record: PredictionRecord) -> None:
        """Stores it, to the end even if the caller leaves meanwhile."""
        failures: list[AprendizError] = []

        async def add() -> None:
            try:
                await self._again.store.add(record)
            except AprendizError as error:
                failures.append(error)
            else:
                self._again.metrics.predictions.labels(self._again.metrics.model_label(self.model), "ok").inc()

        await asyncio.shield(self._again.spawn(add()))
        if failures:
            raise failures[0]

    def _to_record(self, answer: Answer) -> PredictionRecord:
        again, origin, usage = self._again, self._origin, answer.usage
        request = dataclasses.replace(
            again.request,
            messages=(*origin.head, *again.request.messages),
            sampling=origin.sampling,
            examples=origin.examples,
            context=origin.context,
        )
        return PredictionRecord(
            id=self.id,
            user_id=again.principal.user_id,
            created_at=again.created_at,
            provider=origin.provider,
            model=origin.model,
            version=origin.version,
            input=to_input(request),
            output=storable(answer.text),
            finish_reason=answer.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            queue_ms=self._found_s * 1000,
            first_token_ms=self._found_s * 1000,
            total_ms=(again.clock() - again.called_at) * 1000,
            cached=True,
            key_id=again.principal.key_id,
            conversation_id=self.conversation_id,
            request_id=again.request.request_id,
            alias=again.asked,
            tool_calls=answer.tool_calls,
            cached_tokens=usage.cached_tokens,
            cost_nanousd=0,
            fallback=origin.fallback,
            reasoning=storable(answer.reasoning),
        )
