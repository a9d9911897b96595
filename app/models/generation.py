"""One prediction from its slot to its stored end.

`Generation` passes the provider's events on, and whatever happens (a whole answer, an error, a client that leaves, a
deadline, the service going down) it does the same four things exactly once: it ends the work in the engine, frees the slot,
stores the prediction, counts it. It decides nothing about queues, names or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from app.core.errors import AprendizError, UpstreamError, UpstreamTimeout
from app.core.metrics import Metrics
from app.core.records import PredictionRecord, PredictionStatus
from app.core.text import storable
from app.core.types import (
    Answer,
    Event,
    Finished,
    FinishReason,
    Folder,
    GenerationRequest,
    Principal,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from app.models.deployment import Deployment
from app.models.scheduler import Ticket
from app.models.stores import PredictionStore

logger = logging.getLogger(__name__)

_CLOSE_S = 10.0
_COUNT_S = 2.0


@dataclass(frozen=True)
class Completed:
    """The end of a generation: the prediction, stored, and its answer."""

    prediction: PredictionRecord
    answer: Answer


@dataclass(frozen=True, slots=True)
class Work:
    """What the manager has reserved for one generation. Times on ``clock``; ``spawn`` runs what must outlive its caller."""

    id: str
    request: GenerationRequest
    principal: Principal
    alias: str | None
    deployment: Deployment
    ticket: Ticket
    called_at: float
    created_at: datetime
    answer_timeout_s: float
    store: PredictionStore
    metrics: Metrics
    clock: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    on_end: Callable[[Generation], None]


@dataclass(frozen=True, slots=True)
class _End:
    """How it ended: what the record says."""

    status: PredictionStatus
    reason: FinishReason
    usage: Usage
    error: AprendizError | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


class Generation:
    """Reserved and ready; holds a slot until it ends. Use as ``async with generation:`` around `events`.

    One consumer, once. Never entered, it ends by itself at its deadline.
    """

    def __init__(self, work: Work) -> None:
        self.id = work.id
        self.model = work.deployment.name
        self.version = work.deployment.loaded.version.id
        self.conversation_id = work.request.conversation_id
        self.fallback: str | None = None
        self.cached = False
        self._work = work
        self._folder = Folder()
        self._pieces = 0
        self._first_token_ms: float | None = None
        self._stream: AsyncGenerator[Event, None] | None = None
        self._reader: asyncio.Task[Any] | None = None
        self._interruption: AprendizError | None = None
        self._settling: asyncio.Task[None] | None = None
        self._record: PredictionRecord | None = None
        self._storage_error: AprendizError | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(work.answer_timeout_s, self._deadline_passed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._settle(_End("cancelled", "cancelled", Usage()))

    async def events(self) -> AsyncGenerator[Event | Completed, None]:
        """The provider's events, then exactly one `Completed`, after the prediction is stored.

        Raises:
            UpstreamTimeout: not finished within ``answer_timeout_s``.
            ShuttingDown: the service ended first.
            StorageUnavailable, StorageFull: answered, and not stored: there is no such prediction.
            AprendizError: the provider's.
        """
        self._check_interrupted()
        self._stream = self._work.deployment.loaded.stream(self._work.request)
        try:
            while (event := await self._next()) is not None:
                if isinstance(event, Finished):
                    break
                yield event
                self._check_interrupted()
            answer = self._folder.answer()
        except AprendizError as error:
            await self._settle(_End("error", "error", Usage(), error))
            raise
        except (GeneratorExit, asyncio.CancelledError):
            await self._settle(_End("cancelled", "cancelled", Usage()))
            raise
        except Exception as error:
            logger.exception("A provider failed unexpectedly.", extra={"data": {"model": self.model, "prediction_id": self.id}})
            failure = UpstreamError("The model failed unexpectedly. Try again.")
            await self._settle(_End("error", "error", Usage(), failure))
            raise failure from error
        # Stored before the closing event leaves: whoever has seen the end may use the id.
        await self._settle(_End("ok", answer.finish_reason, answer.usage, tool_calls=answer.tool_calls))
        if self._record is None:
            raise self._storage_error or self._interruption or UpstreamError("The answer was not kept. Try again.")
        yield Finished(answer.finish_reason, answer.usage)
        yield Completed(self._record, answer)

    async def batches(self) -> AsyncGenerator[Sequence[Event] | Completed, None]:
        """`events`, with those that came together in one sequence."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                yield event if isinstance(event, Completed) else (event,)

    async def completed(self) -> Completed:
        """The whole answer: `events` to its end. Raises as `events`."""
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Completed):
                    return event
        raise UpstreamError("The answer was cut off before its end. Try again.")

    def interrupt(self, error: AprendizError) -> None:
        """Ends it from outside with ``error``, whether it waits for the engine, for its consumer, or was never begun."""
        if self._interruption is not None or self._settling is not None:
            return
        self._interruption = error
        if self._reader is not None:
            self._reader.cancel()
        else:
            self._start_settling(_End("error", "error", Usage(), error))

    async def _next(self) -> Event | None:
        """The provider's next event, or None at its end. An interruption wakes it and is raised in place of the
        cancellation."""
        assert self._stream is not None  # noqa: S101  # set by the only caller
        self._reader = reader = asyncio.current_task()
        cancels = reader.cancelling() if reader is not None else 0
        try:
            event = await anext(self._stream, None)
        except (asyncio.CancelledError, AprendizError) as error:
            if self._interruption is None or reader is None:
                raise
            # Only our own `cancel` is turned into the error; the client's, or both at once, stays a cancellation.
            if reader.uncancel() > cancels and isinstance(error, asyncio.CancelledError):
                raise
            raise self._interruption from None
        finally:
            self._reader = None
        if event is not None:
            self._note(event)
        return event

    def _note(self, event: Event) -> None:
        self._folder.add(event)
        if isinstance(event, Finished | TokenLogprobs):
            return
        self._pieces += 1
        if self._first_token_ms is None and isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            work = self._work
            seconds = work.clock() - work.called_at
            self._first_token_ms = seconds * 1000
            work.metrics.first_token_seconds.labels(work.deployment.label).observe(seconds)

    def _check_interrupted(self) -> None:
        if self._interruption is not None:
            raise self._interruption

    def _deadline_passed(self) -> None:
        limit = self._work.answer_timeout_s
        self.interrupt(UpstreamTimeout(f"The answer was not finished within {limit:g} seconds. Ask for fewer tokens."))

    async def _settle(self, end: _End) -> None:
        """Ends it as ``end`` unless it has ended, and waits. The work itself is not the caller's: cancelling cannot cut it
        short."""
        await asyncio.shield(self._start_settling(end))

    def _start_settling(self, end: _End) -> asyncio.Task[None]:
        if self._settling is None:
            self._timer.cancel()
            self._settling = self._work.spawn(self._finish(end))
        return self._settling

    async def _finish(self, end: _End) -> None:
        work = self._work
        try:
            await self._close_stream()
        finally:
            work.deployment.scheduler.release(work.ticket)
        if end.status != "ok":
            end = dataclasses.replace(end, usage=await self._usage_so_far())
        try:
            await self._keep(end)
        finally:
            self._count(end)
            work.on_end(self)

    async def _close_stream(self) -> None:
        """Cancels what the engine still does for it."""
        if self._stream is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._stream.aclose()
        except Exception:
            logger.exception("A provider did not let go of a request.", extra={"data": {"model": self.model}})

    async def _keep(self, end: _End) -> None:
        record = self._to_record(end)
        try:
            await self._work.store.add(record)
        except AprendizError as error:
            self._storage_error = error
            logger.error("prediction not stored", extra={"data": {"prediction_id": self.id, "error": error.slug}})
        else:
            self._record = record

    async def _usage_so_far(self) -> Usage:
        """Tokens of an answer that has no end: the engine never told, so the prompt is counted and the pieces are taken as
        tokens."""
        finished = self._folder.finished
        if finished is not None:
            return finished.usage
        prompt = 0
        if self._stream is not None:
            with contextlib.suppress(AprendizError, TimeoutError):  # an engine that just died cannot count: 0 says so
                async with asyncio.timeout(_COUNT_S):
                    prompt = await self._work.deployment.loaded.count_tokens(self._work.request)
        return Usage(prompt_tokens=prompt, completion_tokens=self._pieces)

    def _to_record(self, end: _End) -> PredictionRecord:
        work = self._work
        spec = work.deployment.spec
        return PredictionRecord(
            id=self.id,
            user_id=work.principal.user_id,
            created_at=work.created_at,
            provider=spec.provider,
            model=self.model.removeprefix(f"{spec.provider}/"),
            version=self.version,
            input=to_input(work.request),
            output=storable(self._folder.text),
            finish_reason=end.reason,
            prompt_tokens=end.usage.prompt_tokens,
            completion_tokens=end.usage.completion_tokens,
            queue_ms=work.ticket.waited_s * 1000,
            first_token_ms=self._first_token_ms,
            total_ms=(work.clock() - work.called_at) * 1000,
            status=end.status,
            error=None if end.error is None else f"{end.error.slug}: {end.error.detail}",
            key_id=work.principal.key_id,
            conversation_id=work.request.conversation_id,
            request_id=work.request.request_id,
            alias=work.alias,
            tool_calls=end.tool_calls,
        )

    def _count(self, end: _End) -> None:
        work, label = self._work, self._work.deployment.label
        work.metrics.predictions.labels(label, end.status).inc()
        work.metrics.prediction_seconds.labels(label).observe(work.clock() - work.called_at)
        work.metrics.tokens.labels(label, "prompt").inc(end.usage.prompt_tokens)
        work.metrics.tokens.labels(label, "completion").inc(end.usage.completion_tokens)


def to_input(request: GenerationRequest) -> Mapping[str, Any]:
    """The structured input as it is stored: ``{"messages": [...], "sampling": {...}}``; sampling without what is not set."""
    sampling = {
        field.name: value
        for field in dataclasses.fields(request.sampling)
        if (value := getattr(request.sampling, field.name)) not in (None, ())
    }
    return {"messages": [message.to_wire() for message in request.messages], "sampling": sampling}
